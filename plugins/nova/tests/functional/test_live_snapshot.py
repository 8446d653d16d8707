"""A live snapshot that succeeds: answer, image, task states, records, notifications."""

from __future__ import annotations

import itertools

import fixtures

from .base import STATE_IMAGE, PluginTestCase


class LiveSnapshot(PluginTestCase):
    def test_the_answer_is_the_image_as_with_create_image(self) -> None:
        server = self.boot()
        response = self.act(server)
        assert list(response.body) == ["image_id"]
        self.settle(server)
        assert self.glance.images[response.body["image_id"]]["status"] == "active"

    def test_before_microversion_2_45_the_answer_is_a_location(self) -> None:
        server = self.boot()
        self.api.microversion = "2.44"
        response = self.act(server)
        self.settle(server)
        assert not response.body
        image_id = response.headers["location"].rpartition("/")[2]
        assert self.glance.images[image_id]["name"] == "warm"

    def test_the_image_has_the_name_and_the_metadata(self) -> None:
        server = self.boot()
        image = self.glance.images[self.take(server, metadata={"stage": "warm"})]
        assert image["name"] == "warm"
        wanted = {"stage": "warm", "image_type": "snapshot", "instance_uuid": server["id"]}
        assert wanted.items() <= image["properties"].items()
        assert image["properties"]["live_snapshot_state"] == STATE_IMAGE

    def test_the_task_states_are_those_of_a_snapshot(self) -> None:
        server = self.boot()
        self.notifier.reset()
        self.take(server)
        self.wait_for_notification("instance.live_snapshot.end")
        updates = [
            message["payload"]["nova_object.data"]["state_update"]["nova_object.data"]
            for message in self.notifier.versioned_notifications
            if message["event_type"] == "instance.update"
        ]
        changes = [
            (update["old_task_state"], update["new_task_state"])
            for update in updates
            if update["old_task_state"] != update["new_task_state"]
        ]
        # Nova tells of the first change on the host alone; what the API set before shows as the old state.
        states = ["image_snapshot_pending", "image_snapshot", "image_pending_upload", "image_uploading", None]
        assert changes == list(itertools.pairwise(states))

    def test_the_action_and_its_event_are_on_record(self) -> None:
        server = self.boot()
        self.take(server)
        event = self.wait_for_event(server, "Success")
        assert event["host"] == "compute1"
        assert self.actions(server) == ["live_snapshot", "create"]

    def test_start_and_end_are_told_in_both_forms(self) -> None:
        server = self.boot()
        image_id = self.take(server)
        self.wait_for_notification("instance.live_snapshot.end")
        assert self.told() == [
            "instance.live_snapshot.start",
            "instance.live_snapshot.end",
            "compute.instance.live_snapshot.start",
            "compute.instance.live_snapshot.end",
        ]
        message = self.wait_for_notification("instance.live_snapshot.start")
        payload = message["payload"]["nova_object.data"]
        assert message["publisher_id"] == "nova-compute:compute1"
        assert message["priority"] == "INFO"
        assert (payload["uuid"], payload["snapshot_image_id"]) == (server["id"], image_id)

    def test_both_api_roots_have_the_action(self) -> None:
        server = self.boot()
        self.api.base_url = self.api.base_url.replace("/v2.1", "/v2")
        self.api.microversion = None
        response = self.act(server)
        self.settle(server)
        assert response.headers["location"]

    def test_what_is_made_of_a_clone_does_not_inherit_the_tie_to_the_memory(self) -> None:
        self.useFixture(
            fixtures.MonkeyPatch("liveclone_nova.clone.is_clone", lambda _: False)
        )  # no memory here
        clone = self.boot(image_uuid=self.take(self.boot()))
        body = {"createImage": {"name": "later"}}
        later = self.api.api_post(f"/servers/{clone['id']}/action", body, check_response_status=[202])
        properties = self.glance.images[later.body["image_id"]]["properties"]
        assert properties["base_image_ref"]
        assert "live_snapshot_state" not in properties


class LockedServer(PluginTestCase):
    def test_an_administrator_may_snapshot_it(self) -> None:
        server = self.boot()
        self.api.post_server_action(server["id"], {"lock": None})
        self.act(server, api=self.admin_api)
        self.settle(server)
