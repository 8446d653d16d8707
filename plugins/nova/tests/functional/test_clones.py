"""A server from a live snapshot that cannot be restored: it fails, saying why, and is never booted instead."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import fixtures
from nova import context, objects
from nova.virt.libvirt import host as libvirt_host

from liveclone.model.identity import Finding
from liveclone_nova import domains, evidence, policies, traits
from liveclone_nova.conf import CONF

from ..unit.states import make_evidence, make_identity, make_state
from .base import STATE_IMAGE, PluginTestCase

KEY = "0123456789abcdef0123456789abcdef"


class Clones(PluginTestCase):
    def offer(self, **description: Any) -> None:
        """Put a state into Glance, as this cloud seals them."""
        with tempfile.TemporaryDirectory() as folder:
            data = make_state(Path(folder) / "state", KEY.encode(), state_image=STATE_IMAGE, **description)
        self.glance.create(None, {"id": STATE_IMAGE, "properties": {}})
        self.glance.download = lambda *_, **__: iter([data])
        self.flags(seal_keys=[KEY], group="liveclone")

    def fail(self, **arguments: Any) -> str:
        """Create a server from a live snapshot, which has to end in an error on the one host; return its words."""
        image = self.take(self.boot())
        server = self._create_server(networks="none", image_uuid=image, expected_state="ERROR")
        instance = objects.Instance.get_by_uuid(context.get_admin_context(), server["id"])
        assert instance.launched_at is None
        assert "hypervisor" not in server["fault"]["message"]
        return str(server["fault"]["message"])

    def test_nobody_can_verify_it(self) -> None:
        self.offer(no_identity="the guest has no port")
        words = self.fail()
        assert "its identity cannot be verified (the guest has no port)" in words
        assert "[liveclone]/unverified_clones" in words

    def test_the_operator_may_not_mind_that(self) -> None:
        """What else speaks against it (it is another image's) is said then."""
        self.flags(unverified_clones=True, group="liveclone")
        self.offer(no_identity="the guest has no port")
        words = self.fail()
        assert "its state belongs to image" in words
        assert "identity" not in words

    def test_where_an_agent_was_there_is_nothing_to_mind(self) -> None:
        self.offer(identity=make_identity())
        words = self.fail()
        assert "its state belongs to image" in words
        assert "identity" not in words

    def test_its_host_has_no_key(self) -> None:
        assert "no [liveclone]/seal_keys" in self.fail()

    def test_its_state_is_missing(self) -> None:
        self.flags(seal_keys=[KEY], group="liveclone")
        assert "its state is not there" in self.fail()


class Evidence(PluginTestCase):
    """An event of the action by which the server was made, in Nova's own records."""

    def tell(self, **changes: Any) -> dict[str, Any]:
        server = self.boot()
        (action,) = self.admin_api.get_instance_actions(server["id"])
        asked = context.get_admin_context()
        asked.request_id = action["request_id"]
        instance = objects.Instance.get_by_uuid(asked, server["id"])
        told = make_evidence(server["id"], **changes)
        evidence.tell(asked, instance, evidence.summarize(told), told)
        return {"server": server["id"], "request": action["request_id"]}

    def read(self, api: Any, *, server: str, request: str) -> dict[str, Any]:
        answer = api.api_get(f"/servers/{server}/os-instance-actions/{request}").body
        events = {event["event"]: event for event in answer["instanceAction"]["events"]}
        return dict(events[evidence.EVENT])

    def test_its_owner_reads_what_came_of_it(self) -> None:
        event = self.read(self.api, **self.tell())
        assert event["result"] == "Success: verified; unlike in the snapshot and 0 others: hostname"
        assert event["finish_time"]
        assert "details" not in event

    def test_a_sentence_that_is_too_long_is_cut(self) -> None:
        findings = tuple(Finding(item=f"item-{number}", reason="no reason " * 9) for number in range(9))
        result = self.read(self.api, **self.tell(findings=findings))["result"]
        assert result.startswith("Error: not verified: item-0: no reason")
        assert len(result) == 255
        assert result.endswith("...")

    def test_an_administrator_reads_all_of_it(self) -> None:
        told = self.tell()
        event = self.read(self.admin_api, **told)
        assert json.loads(event["details"])["machine"] == told["server"]
        assert event["host"] == CONF.host

    def test_an_operator_may_let_the_owner_read_all_of_it(self) -> None:
        told = self.tell()
        rules = {"os_compute_api:os-instance-actions:events:details": "project_id:%(project_id)s"}
        self.policy.set_rules(rules, overwrite=False)
        assert json.loads(self.read(self.api, **told)["details"])["items"]

    def test_a_server_without_an_action_on_record_is_no_failure(self) -> None:
        server = self.boot()
        asked = context.RequestContext("user", self.api.project_id)
        instance = objects.Instance.get_by_uuid(context.get_admin_context(), server["id"])
        evidence.tell(asked, instance, "Success")


class Devices(PluginTestCase):
    """What a guest has, as Nova's libvirt is told."""

    def xml(self) -> str:
        """Return what libvirt is given for a server."""
        given: list[str] = []
        define = libvirt_host.Host.write_instance_config

        def watch(host: Any, xml: str) -> Any:
            given.append(xml)
            return define(host, xml)

        name = "nova.virt.libvirt.host.Host.write_instance_config"
        self.useFixture(fixtures.MonkeyPatch(name, watch))
        self.boot()
        return given[-1]

    def test_each_guest_has_the_agents_port(self) -> None:
        assert "org.liveclone.agent.0" in self.xml()

    def test_a_host_without_vmgenid_says_so(self) -> None:
        assert "genid" not in self.xml()
        assert "The guest goes without VMGENID (its QEMU has none)" in self.stdlog.logger.output


class Scheduling(PluginTestCase):
    """Which hosts are tried."""

    def ours(self) -> set[str]:
        (provider,) = self.compute_rp_uuids.values()
        return {trait for trait in self._get_provider_traits(provider) if "LIVECLONE" in trait}

    def switch(self) -> None:
        """Switch on what a host needs to restore, as conf does; placement is told."""
        self.flags(seal_keys=[KEY], group="liveclone")
        self._run_periodics()

    def test_without_a_key_it_loads_nothing(self) -> None:
        assert self.ours() == set()

    def test_a_host_tells_what_it_can_load(self) -> None:
        self.switch()
        driver = self.computes["compute1"].driver
        assert self.ours() == traits.of_host(domains.host_of(driver))
        assert len(self.ours()) == 3

    def test_what_it_could_load_with_another_qemu_is_taken_back(self) -> None:
        self.switch()
        before = self.ours()
        name = "liveclone_nova.traits.of_host"
        self.useFixture(
            fixtures.MonkeyPatch(name, lambda host: {"CUSTOM_LIVECLONE", "CUSTOM_LIVECLONE_KVM_99_0"})
        )
        self._run_periodics()
        assert self.ours() == {"CUSTOM_LIVECLONE", "CUSTOM_LIVECLONE_KVM_99_0"} != before

    def test_a_host_that_would_refuse_it_is_not_tried(self) -> None:
        image = self.take(self.boot())
        self._create_trait("CUSTOM_LIVECLONE_KVM_99_0")
        required = {"trait:CUSTOM_LIVECLONE_KVM_99_0": "required"}
        self.glance.update(None, image, {"properties": required})
        server = self._create_server(networks="none", image_uuid=image, expected_state="ERROR")
        assert "No valid host was found" in server["fault"]["message"]


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
