"""A live snapshot that fails after it was accepted: no image stays, the server is as before, and everybody is told why."""

from __future__ import annotations

from typing import Any

import fixtures
from nova import context, exception, objects
from nova.compute import task_states

from liveclone_nova import compute_api, interface

from .base import PluginTestCase, stand_in


class FailureTestCase(PluginTestCase):
    def fail(self, server: dict[str, Any], reason: str) -> None:
        """Take a live snapshot that has to fail on the host for that reason, and look at what is left."""
        images = set(self.glance.images)
        self.act(server)
        event = self.wait_for_event(server, "Error")
        error = self.wait_for_notification("instance.live_snapshot.error")
        self._wait_for_assert(lambda: self.assertEqual(images, set(self.glance.images)))
        self.settle(server)
        assert reason in event["traceback"] + event["details"]
        fault = error["payload"]["nova_object.data"]["fault"]["nova_object.data"]
        assert error["priority"] == "ERROR"
        assert reason in fault["exception_message"]
        assert self.told() == [
            "instance.live_snapshot.start",
            "instance.live_snapshot.error",
            "compute.instance.live_snapshot.start",
            "compute.instance.live_snapshot.error",
        ]
        recorded = objects.InstanceFault.get_latest_for_instance(context.get_admin_context(), server["id"])
        assert reason in recorded.message


def raise_at_once(*_: Any) -> None:
    raise exception.NovaException("the disk is full")


def raise_in_the_upload(driver: Any, context: Any, instance: Any, image_id: str, update: Any) -> None:
    update(task_state=task_states.IMAGE_PENDING_UPLOAD)
    raise exception.ImageQuotaExceeded(image_id=image_id)


class DriverRaises(FailureTestCase):
    capture = staticmethod(raise_at_once)

    def test_nothing_is_left(self) -> None:
        server = self.boot()
        self.fail(server, "the disk is full")
        assert self.actions(server) == ["live_snapshot", "create"]

    def test_the_next_one_may_be_taken(self) -> None:
        server = self.boot()
        self.fail(server, "the disk is full")
        self.useFixture(fixtures.MonkeyPatch("liveclone_nova.capture.capture", stand_in))
        assert self.take(server) in self.glance.images


class UploadFails(FailureTestCase):
    capture = staticmethod(raise_in_the_upload)

    def test_nothing_is_left(self) -> None:
        self.fail(self.boot(), "Quota exceeded")


class DriverWithoutAnImplementation(FailureTestCase):
    def setUp(self) -> None:
        super().setUp()
        missing = interface.LiveSnapshotDriver
        for method in ("check_can_live_snapshot", "live_snapshot"):
            self.useFixture(
                fixtures.MonkeyPatch(
                    f"liveclone_nova.libvirt_driver.LibvirtDriver.{method}", getattr(missing, method)
                )
            )

    def test_the_request_is_refused(self) -> None:
        assert "the virt driver of its host has no live snapshots" in self.refuse(self.boot(), 409)

    def test_what_was_cast_all_the_same_is_taken_back(self) -> None:
        self.useFixture(fixtures.MonkeyPatch("liveclone_nova.compute_api.API._ask_host", lambda *_: []))
        self.fail(self.boot(), "The virt driver LibvirtDriver has no live snapshots")


class PluginAsItIs(FailureTestCase):
    capture = None

    def test_what_bars_it_is_looked_at_again_before_the_guest_is_touched(self) -> None:
        self.useFixture(fixtures.MonkeyPatch("liveclone_nova.compute_api.API._ask_host", lambda *_: []))
        self.fail(self.boot(), "its host has no [liveclone]/seal_keys")


class MessageQueueFails(PluginTestCase):
    def test_the_image_goes_and_the_server_is_idle(self) -> None:
        server = self.boot()
        images = set(self.glance.images)
        self.useFixture(
            fixtures.MonkeyPatch(
                "liveclone_nova.rpcapi.LiveSnapshotAPI.live_snapshot_instance", raise_at_once
            )
        )
        self.act(server, 500)
        assert set(self.glance.images) == images
        assert self.task_state(server) is None


class TwoAtOnce(PluginTestCase):
    """Between the check and the task state somebody else was quicker."""

    def test_the_second_is_409_and_leaves_no_image(self) -> None:
        server = self.boot()
        ask = compute_api.API._ask_host

        def ask_and_be_late(api: Any, context: Any, instance: Any) -> Any:
            other = objects.Instance.get_by_uuid(context, instance.uuid)
            other.task_state = task_states.REBOOTING
            other.save()
            return ask(api, context, instance)

        self.useFixture(fixtures.MonkeyPatch("liveclone_nova.compute_api.API._ask_host", ask_and_be_late))
        images = set(self.glance.images)
        body = self.act(server, 409).body
        assert "task_state rebooting" in body["conflictingRequest"]["message"]
        assert set(self.glance.images) == images
        assert self.task_state(server) == task_states.REBOOTING


class ServerIsDeletedMeanwhile(PluginTestCase):
    def test_the_image_goes(self) -> None:
        server = self.boot()
        images = set(self.glance.images)

        def delete_then_go_on(driver: Any, context: Any, instance: Any, image_id: str, update: Any) -> None:
            self.api.delete_server(server["id"])
            self._wait_until_deleted(server)
            update(task_state=task_states.IMAGE_PENDING_UPLOAD)

        self.useFixture(fixtures.MonkeyPatch("liveclone_nova.capture.capture", delete_then_go_on))
        self.act(server)
        self._wait_for_assert(lambda: self.assertEqual(images, set(self.glance.images)))


class ComputeIsKilledMeanwhile(PluginTestCase):
    def test_the_next_one_finds_the_server_idle(self) -> None:
        server = self.boot()
        # As it is when the process ended between the cast and the capture.
        instance = objects.Instance.get_by_uuid(context.get_admin_context(), server["id"])
        instance.task_state = task_states.IMAGE_SNAPSHOT
        instance.save()
        self.restart_compute_service("compute1")
        self.settle(server)
        assert self.take(server) in self.glance.images
