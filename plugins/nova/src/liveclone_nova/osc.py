"""`openstack server live snapshot`: the action for those who use OpenStack's command line. Nothing of Nova is needed here.

A plugin of python-openstackclient, found by the entry point `openstack.compute.v2` (pyproject.toml).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from openstack import exceptions as sdk_exceptions
from osc_lib import exceptions
from osc_lib.cli import parseractions
from osc_lib.command import command

# From here on the answer names the image; what the server does is the same in every one.
MICROVERSION = "2.45"
COLUMNS = ("id", "name", "status", "server_id")


class LiveSnapshotServer(command.ShowOne):
    """Create a live snapshot of a running server: memory, processor state and disk, in an image."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server to snapshot (name or ID)")
        parser.add_argument(
            "--name", metavar="<image-name>", help="Name of the image (default: the server's)"
        )
        parser.add_argument(
            "--property",
            metavar="<key=value>",
            action=parseractions.KeyValueAction,
            default={},
            help="Property of the image (repeat for several)",
        )
        parser.add_argument("--wait", action="store_true", help="Wait until the image is active")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        compute, images = self.app.client_manager.compute, self.app.client_manager.image
        server = compute.find_server(parsed_args.server, ignore_missing=False)
        entity = {"name": parsed_args.name or server.name, "metadata": parsed_args.property}
        response = compute.post(
            f"/servers/{server.id}/action", json={"live_snapshot": entity}, microversion=MICROVERSION
        )
        sdk_exceptions.raise_from_response(response)
        image_id = response.json()["image_id"]
        try:
            image = images.get_image(image_id)
            while parsed_args.wait and image.status in ("queued", "saving"):
                time.sleep(1)  # Glance tells nobody
                image = images.get_image(image_id)
        except sdk_exceptions.NotFoundException:  # whoever fails to fill an image deletes it
            raise exceptions.CommandError(
                f"The live snapshot of {server.id} failed: see 'openstack server event list {server.id}'"
            ) from None
        return COLUMNS, (image.id, image.name, image.status, server.id)
