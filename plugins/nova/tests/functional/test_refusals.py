"""A live snapshot that is refused: with a reason, and nothing has changed."""

from __future__ import annotations

from typing import Any

from nova import context, objects, policy
from nova.tests import fixtures as nova_fixtures
from oslo_utils.fixture import uuidsentinel as uuids

from liveclone_nova import policies

from .base import PluginTestCase


class Refusals(PluginTestCase):
    def test_a_body_that_does_not_fit_is_400(self) -> None:
        server = self.boot()
        for entity in (
            {},
            {"name": ""},
            {"name": "a", "kind": "b"},
            {"name": "a", "metadata": {"b": 1}},
            None,
        ):
            self.api.api_post(
                f"/servers/{server['id']}/action", {"live_snapshot": entity}, check_response_status=[400]
            )
        assert self.actions(server) == ["create"]

    def test_an_operator_may_take_the_right_away(self) -> None:
        server = self.boot()
        self.policy.set_rules({"os_compute_api:os-live-snapshot:create": "!"}, overwrite=False)
        assert "os-live-snapshot:create" in self.refuse(server, 403)

    def test_too_much_metadata_is_403_where_nova_still_counts_it(self) -> None:
        server = self.boot()
        self.flags(metadata_items=1, group="quota")
        metadata = {"a": "1", "b": "2"}
        self.api.microversion = "2.38"
        assert "limit exceeded" in self.refuse(server, 403, metadata=metadata)
        self.api.microversion = "2.45"
        self.take(server, metadata=metadata)

    def test_a_server_that_is_not_there_is_404(self) -> None:
        self.act({"id": uuids.nobody}, 404)

    def test_a_server_that_does_not_run_is_409(self) -> None:
        server = self.boot()
        self.api.post_server_action(server["id"], {"os-stop": None})
        self._wait_for_state_change(server, "SHUTOFF")
        assert "vm_state stopped" in self.refuse(server, 409)

    def test_a_server_that_is_busy_is_409(self) -> None:
        server = self.boot()
        instance = self.load(server)
        instance.task_state = "rebooting"
        instance.save()
        assert "task_state rebooting" in self.refuse(server, 409)

    def test_a_locked_server_is_409(self) -> None:
        server = self.boot()
        self.api.post_server_action(server["id"], {"lock": None})
        assert "is locked" in self.refuse(server, 409)

    def test_a_volume_is_409_and_named(self) -> None:
        server = self.boot()
        volume = nova_fixtures.CinderFixture.IMAGE_BACKED_VOL
        self.api.post_server_volume(server["id"], {"volumeAttachment": {"volumeId": volume}})
        self._wait_for_volume_attach(server["id"], volume)
        assert f"volume {volume} is attached" in self.refuse(server, 409)

    def test_all_that_bars_it_is_said_at_once(self) -> None:
        flavor = self._create_flavor(ephemeral=1, swap=64, extra_spec={"hw:mem_encryption": "False"})
        server = self._build_server(flavor_id=flavor, networks="none")
        server["config_drive"] = True
        server = self._wait_for_state_change(self.api.post_server({"server": server}), "ACTIVE")
        words = self.refuse(server, 409)
        for reason in ("it has a swap disk", "it has an ephemeral disk", "it has a config drive"):
            assert reason in words

    def test_a_host_that_is_down_is_409(self) -> None:
        server = self.boot()
        self.admin_api.put_service(self.service_id(), {"forced_down": True})
        assert "is down" in self.refuse(server, 409)

    def load(self, server: dict[str, Any]) -> Any:
        return objects.Instance.get_by_uuid(context.get_admin_context(), server["id"])

    def service_id(self) -> str:
        (service,) = self.admin_api.get_services(binary="nova-compute")
        return str(service["id"])


class Reader(PluginTestCase):
    def setUp(self) -> None:
        super().setUp()
        # As everywhere but in Nova's own fixtures, where whoever is in the project may do all.
        self.flags(enforce_new_defaults=True, group="oslo_policy")
        policy.reset()
        policy.init(suppress_deprecation_warnings=True)
        policies.register()

    def test_who_may_only_read_gets_403(self) -> None:
        reader = self.api_fixture.reader_api
        reader.microversion = self.microversion
        server = self.boot()
        assert "os-live-snapshot:create" in self.refuse(server, 403, api=reader)
        self.take(server)


class HostWithNovasOwnDriver(PluginTestCase):
    compute_driver = "libvirt.LibvirtDriver"

    def test_it_is_409_and_nothing_waits_for_an_answer_that_never_comes(self) -> None:
        assert "its host has no live snapshots" in self.refuse(self.boot(), 409)


class PluginAsItIs(PluginTestCase):
    capture = None

    def test_it_says_what_bars_it_in_the_guest_and_on_the_host(self) -> None:
        words = self.refuse(self.boot(), 409)
        # The stand-in for libvirt calls its machine type so; the guest's description has been read and judged.
        assert "machine type pc-0.12: only i440fx and q35 are known" in words
        assert "its host has no [liveclone]/seal_keys" in words
