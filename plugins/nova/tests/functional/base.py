"""A small cloud in one process, with the plugin in it."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import fixtures
from nova.compute import task_states
from nova.tests.functional.libvirt import base

NOVA_PASTE = Path(sysconfig.get_path("data")) / "etc/nova/api-paste.ini"
THEIR_FACTORY = "nova.api.openstack.compute:APIRouterV21.factory"
OUR_FACTORY = "liveclone_nova.api:APIRouter.factory"

STATE_IMAGE = "6b8ff1a5-2c6a-4a4f-9d0b-0d6f7e0a4a11"


def stand_in(driver: Any, context: Any, instance: Any, image_id: str, update_task_state: Any) -> None:
    """Do to the task states and the image what a capture does. The capture itself is not there yet."""
    update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
    update_task_state(task_state=task_states.IMAGE_UPLOADING, expected_state=task_states.IMAGE_PENDING_UPLOAD)
    ties = {"live_snapshot_state": STATE_IMAGE}
    metadata = {"status": "active", "disk_format": "qcow2", "container_format": "bare", "properties": ties}
    metadata["owner"] = instance.project_id  # as Glance does, and Nova's stand-in of it does not
    driver._image_api.update(context, image_id, metadata, purge_props=False)


class PluginTestCase(base.ServersTestBase):
    """Nova with the plugin; subclasses vary it."""

    microversion = "2.96"
    CAST_AS_CALL = False  # what fails on the host must not fail the request
    compute_driver = "liveclone.LibvirtDriver"
    paste_line = True
    capture: Any = staticmethod(stand_in)  # None: the plugin's own

    def setUp(self) -> None:
        self._write_paste()
        super().setUp()
        # Each change of a task state is told, so that tests see them all.
        self.flags(notify_on_state_change="vm_and_task_state", group="notifications")
        if self.capture is not None:
            self.useFixture(fixtures.MonkeyPatch("liveclone_nova.capture.find_obstacles", lambda *_: []))
            self.useFixture(fixtures.MonkeyPatch("liveclone_nova.capture.capture", type(self).capture))
        self.start_compute()

    def _clear_attrs(self) -> None:
        super()._clear_attrs()
        # Nova empties the object. pytest removes the test's method from it, and fails when there is none.
        setattr(self, self._testMethodName, None)

    def _setup_compute_service(self) -> None:
        self.flags(compute_driver=self.compute_driver)

    def _write_paste(self) -> None:
        text = NOVA_PASTE.read_text()
        assert text.count(THEIR_FACTORY) == 1
        if self.paste_line:
            text = text.replace(THEIR_FACTORY, OUR_FACTORY)
        paste = Path(self.useFixture(fixtures.TempDir()).path) / "api-paste.ini"
        paste.write_text(text)
        self.flags(api_paste_config=str(paste), group="wsgi")

    def boot(self, **arguments: Any) -> dict[str, Any]:
        return dict(self._create_server(networks="none", **arguments))

    def act(self, server: dict[str, Any], status: int = 202, api: Any = None, **entity: Any) -> Any:
        """POST the action; return the response, which has to have that status."""
        return (api or self.api).api_post(
            f"/servers/{server['id']}/action",
            {"live_snapshot": {"name": "warm", **entity}},
            check_response_status=[status],
        )

    def take(self, server: dict[str, Any], **entity: Any) -> str:
        """Take a live snapshot, wait until it is over, and return the image's id."""
        image_id = str(self.act(server, **entity).body["image_id"])
        self.settle(server)
        return image_id

    def refuse(self, server: dict[str, Any], status: int, api: Any = None, **entity: Any) -> str:
        """POST the action, which has to be refused and to leave nothing; return the words."""
        before, images = self.task_state(server), set(self.glance.images)
        body = self.act(server, status, api=api, **entity).body
        assert set(self.glance.images) == images
        assert self.task_state(server) == before
        assert "live_snapshot" not in self.actions(server)
        (error,) = body.values()
        return str(error["message"])

    def settle(self, server: dict[str, Any]) -> dict[str, Any]:
        """Wait until nothing is done to the server, which is active."""
        idle = {"OS-EXT-STS:task_state": None, "status": "ACTIVE"}
        return dict(self._wait_for_server_parameter(server, idle))

    def task_state(self, server: dict[str, Any]) -> Any:
        return self.admin_api.get_server(server["id"])["OS-EXT-STS:task_state"]

    def actions(self, server: dict[str, Any]) -> list[str]:
        return [action["action"] for action in self.admin_api.get_instance_actions(server["id"])]

    def wait_for_event(self, server: dict[str, Any], result: str) -> dict[str, Any]:
        """Wait until the live snapshot's event on record has ended with that result."""
        name = "compute_live_snapshot_instance"
        return dict(self._wait_for_instance_action_event(server, "live_snapshot", name, result))

    def wait_for_notification(self, event_type: str) -> dict[str, Any]:
        """Wait for the one versioned notification of that type; return it."""
        (found,) = self.notifier.wait_for_versioned_notifications(event_type)
        return dict(found)

    def told(self) -> list[str]:
        """Return what has been told of live snapshots, in both forms, in order of each."""
        versioned = [message["event_type"] for message in self.notifier.versioned_notifications]
        legacy = [message.event_type for message in self.notifier.notifications]
        return [event for event in versioned + legacy if ".live_snapshot." in event]
