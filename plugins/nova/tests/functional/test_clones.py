"""A server from a live snapshot that cannot be restored: it fails, saying why, and is never booted instead."""

from __future__ import annotations

from typing import Any

from nova import context, objects

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
