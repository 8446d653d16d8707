"""`openstack server live snapshot`, with the real SDK against the real API."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import openstack
import pytest
from keystoneauth1 import session
from keystoneauth1.noauth import NoAuth
from nova import exception
from openstack import exceptions as sdk_exceptions
from osc_lib import exceptions

from liveclone_nova import osc

from .base import PluginTestCase, stand_in


def run_out_of_disk(*arguments: Any) -> None:
    if arguments[2].display_name == "unlucky":
        raise exception.NovaException("the disk is full")
    stand_in(*arguments)


class CommandLine(PluginTestCase):
    capture = staticmethod(run_out_of_disk)

    def setUp(self) -> None:
        super().setUp()
        who = {"X-Auth-User": "fake", "X-Auth-Project-Id": self.api.project_id, "X-Roles": "reader,member"}
        self.session = session.Session(NoAuth(), additional_headers=who)

    def run_command(self, *arguments: str) -> dict[str, Any]:
        cloud = openstack.connection.Connection(
            session=self.session, compute_endpoint_override=self.api_fixture.base_url, region_name="here"
        )
        clients = SimpleNamespace(compute=cloud.compute, image=SimpleNamespace(get_image=self.get_image))
        command = osc.LiveSnapshotServer(SimpleNamespace(client_manager=clients), argparse.Namespace())
        parsed = command.get_parser("openstack server live snapshot").parse_args(arguments)
        return dict(zip(*command.take_action(parsed), strict=True))

    def get_image(self, image_id: str) -> Any:
        if image_id not in self.glance.images:
            raise sdk_exceptions.NotFoundException
        image = self.glance.images[image_id]
        # The fixture's images are active from the start.
        status = "active" if "live_snapshot_state" in image["properties"] else "queued"
        return SimpleNamespace(id=image_id, name=image["name"], status=status)

    def test_it_shows_the_image(self) -> None:
        server = self.boot(name="shop")
        shown = self.run_command("shop", "--name", "warm", "--property", "stage=warm", "--wait")
        self.settle(server)
        assert shown == {"id": shown["id"], "name": "warm", "status": "active", "server_id": server["id"]}
        assert self.glance.images[shown["id"]]["properties"]["stage"] == "warm"

    def test_the_image_has_the_servers_name_unless_it_is_given_one(self) -> None:
        server = self.boot(name="shop")
        assert self.run_command(server["id"])["name"] == "shop"
        self.settle(server)

    def test_a_refusal_is_shown_in_its_words(self) -> None:
        server = self.boot(name="shop")
        self.api.post_server_action(server["id"], {"lock": None})
        with pytest.raises(sdk_exceptions.ConflictException, match="is locked"):
            self.run_command("shop")

    def test_a_failure_says_where_the_reason_is(self) -> None:
        server = self.boot(name="unlucky")
        with pytest.raises(exceptions.CommandError, match=f"server event list {server['id']}"):
            self.run_command("unlucky", "--wait")
