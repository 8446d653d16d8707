"""A server from a live snapshot that cannot be restored: it fails, saying why, and is never booted instead."""

from __future__ import annotations

from typing import Any

from nova import context, objects

from liveclone_nova import policies

from .base import PluginTestCase

KEY = "0123456789abcdef0123456789abcdef"


class Clones(PluginTestCase):
    def fail(self, **arguments: Any) -> str:
        """Create a server from a live snapshot, which has to end in an error on the one host; return its words."""
        image = self.take(self.boot())
        server = self._create_server(networks="none", image_uuid=image, expected_state="ERROR")
        instance = objects.Instance.get_by_uuid(context.get_admin_context(), server["id"])
        assert instance.launched_at is None
        assert "hypervisor" not in server["fault"]["message"]
        return str(server["fault"]["message"])

    def test_nobody_can_verify_it(self) -> None:
        assert "[liveclone]/unverified_clones" in self.fail()

    def test_its_host_has_no_key(self) -> None:
        self.flags(unverified_clones=True, group="liveclone")
        assert "no [liveclone]/seal_keys" in self.fail()

    def test_its_state_is_missing(self) -> None:
        self.flags(unverified_clones=True, seal_keys=[KEY], group="liveclone")
        assert "its state is not there" in self.fail()


class Images(PluginTestCase):
    """Whose live snapshot a server is made of."""

    def create(self, status: int, owner: str | None) -> str:
        """Create a server from a live snapshot of that project; return what is said of it."""
        image = self.take(self.boot())
        self.glance.images[image]["owner"] = owner
        body = {"server": self._build_server(networks="none", image_uuid=image)}
        answer = self.api.api_post("/servers", body, check_response_status=[status]).body
        if status == 202:  # and then it fails on the host, where nobody can verify it
            self._wait_for_state_change(answer["server"], "ERROR")
        return str(answer.get("forbidden", {}).get("message"))

    def test_one_of_another_project_is_403(self) -> None:
        assert "os-live-snapshot:clone" in self.create(403, "somebody")
        assert len(self.api.get_servers()) == 1

    def test_one_of_nobody_knows_whom_is_403(self) -> None:
        assert "os-live-snapshot:clone" in self.create(403, None)

    def test_an_operator_may_allow_it(self) -> None:
        rules = {
            policies.CREATE: "@",
            policies.CLONE: "@",
        }  # Nova's fixture forgets those that it does not know
        self.policy.set_rules(rules, overwrite=False)
        self.create(202, "somebody")

    def test_one_of_the_own_project_is_taken(self) -> None:
        self.create(202, self.api.project_id)

    def test_another_image_of_another_project_is_no_matter_of_ours(self) -> None:
        image = self.take(self.boot())
        self.glance.images[image] |= {"owner": "somebody", "properties": {}}
        self.boot(image_uuid=image)
