"""A server from a live snapshot is a machine of its own before it has a card; where that is not shown, it never has one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nova import exception

from liveclone.engine import identify
from liveclone.errors import GuestError
from liveclone.formats import domain_xml
from liveclone.identity import proof, signature
from liveclone.model import base
from liveclone.model.identity import Evidence, ItemStatus
from liveclone.model.proof import Proof
from liveclone_nova import conf, recovery, seal
from liveclone_nova.conf import CONF
from liveclone_nova.exceptions import LiveSnapshotFailed
from liveclone_nova.vifs import Vifs

from .cloud import EVENTS, Cloud
from .guest import (
    AGENT_DISK_GIB,
    AGENT_RAM_MIB,
    CONTINUE_AGENT,
    END_AGENT,
    STOP_AGENT,
    WAIT_FOR_AGENT,
    WITH_AGENT,
)

pytestmark = pytest.mark.timeout(580)
NOVA = Path(__file__).parents[2]
FLAVOR = {"memory_mb": AGENT_RAM_MIB, "root_gb": AGENT_DISK_GIB}
PORT = "org.liveclone.agent.0"
ADDRESS = "ip -4 -o address show dev eth0 | awk '{print $4}'"
OWN = {
    "host name": "hostname",
    "machine-id": "cat /etc/machine-id",
    "host key": "cat /etc/ssh/ssh_host_ed25519_key.pub",
    "boot id": "cat /proc/sys/kernel/random/boot_id",
    "random": "od -An -tx1 -N16 /dev/urandom",
    "address": ADDRESS,
    "card": "cat /sys/class/net/eth0/address",
}


@pytest.fixture(scope="module")
def agent_image(cloud: Cloud) -> str:
    """The image of servers whose guests have liveclone's agent."""
    from liveclone.images.build import build_image

    cache = Path(os.environ.get("LIVECLONE_DEV_CACHE") or NOVA.parents[1] / ".dev" / "cache")
    built = asyncio.run(build_image(WITH_AGENT, cache / "images", replace=True))
    boot = built.boot
    return cloud.add_image(Path(built.disk), Path(boot.kernel), Path(boot.initrd), boot.cmdline)


def boot(cloud: Cloud, agent_image: str) -> Any:
    """Return a server whose agent has opened its port, with a token in its memory, and an address that was set by hand."""
    server = cloud.spawn(agent_image, **FLAVOR)
    guest = cloud.guest(server)
    guest.run(WAIT_FOR_AGENT)
    guest.run("A=token; ip link set eth0 up; ip address replace 10.77.0.200/24 dev eth0")
    return server


@pytest.fixture(scope="module")
def source(cloud: Cloud, agent_image: str) -> Iterator[Any]:
    server = boot(cloud, agent_image)
    yield server
    cloud.destroy(server)


@pytest.fixture(scope="module")
def warm(cloud: Cloud, source: Any) -> Iterator[str]:
    """A live snapshot of the source; nothing unverified may start."""
    CONF.set_override("unverified_clones", False, group="liveclone")
    yield cloud.take(source)
    CONF.set_override("unverified_clones", True, group="liveclone")


@pytest.fixture
def clone(cloud: Cloud, warm: str) -> Iterator[Any]:
    server = cloud.spawn(warm, **FLAVOR)
    yield server
    cloud.destroy(server)


def read(cloud: Cloud, server: Any) -> dict[str, str]:
    guest = cloud.guest(server)
    return {what: guest.run(command) for what, command in OWN.items()}


def read_event(server: Any) -> tuple[str, Evidence]:
    """Return the result of the server's event, and the evidence in it."""
    event = EVENTS[server.uuid]
    assert event.event == "liveclone_identity"
    return event.result, base.decode(event.details.encode(), Evidence, "the event")


def describe(cloud: Cloud, image: str) -> seal.Description:
    state = cloud.images.images[image]["properties"]["live_snapshot_state"]
    return seal.parse_head((cloud.images.folder / state).read_bytes()[: seal.HEAD_BYTES], conf.seal_keys())


def domains(cloud: Cloud) -> set[str]:
    return {domain.UUIDString() for domain in cloud.driver._host.get_connection().listAllDomains()}


def refuse(cloud: Cloud, image: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Spawn a server, which has to be refused, to have no card at any time, and to leave nothing; return its words."""
    attached: list[Any] = []
    monkeypatch.setattr(cloud.driver, "attach_interface", lambda *arguments: attached.append(arguments))
    before, server = domains(cloud), cloud.make_instance(image, **FLAVOR)
    with pytest.raises(exception.ImageUnacceptable) as error:
        cloud.spawn(instance=server)
    assert attached == []
    assert domains(cloud) == before
    assert not (Path(CONF.instances_path) / server.uuid).exists()
    assert "liveclone_identity" not in server.system_metadata
    return str(error.value), server


def test_every_guest_has_a_vmgenid_and_the_agents_port(cloud: Cloud, source: Any) -> None:
    for flags in (0, 2):  # live; VIR_DOMAIN_XML_INACTIVE
        found = domain_xml.parse_domain(cloud.domain(source).XMLDesc(flags))
        assert found.genid
        assert found.find_channel(PORT) is not None


def test_what_clones_are_compared_with_travels_under_the_seal(cloud: Cloud, source: Any, warm: str) -> None:
    known = describe(cloud, warm).identity
    assert known is not None
    assert {"hostname", "machine_id", "rng", "ssh_host_keys"} <= {item.item for item in known.items}
    assert all(item.before for item in known.items if item.item in ("hostname", "machine_id"))
    assert known.renewed.machine == source.uuid
    assert {item.item for item in known.renewed.items if item.status is ItemStatus.CHANGED} >= {"rng"}
    assert known.addresses == ("10.77.0.200/24",)
    assert cloud.images.images[warm]["properties"]["live_snapshot_identity"] == "verifiable"


def test_the_source_is_renewed_and_has_its_address(cloud: Cloud, source: Any, warm: str) -> None:
    guest = cloud.guest(source)
    known = describe(cloud, warm).identity
    assert known is not None
    generation = json.loads(guest.run("cat /run/liveclone/generation"))
    assert generation["uuid"] == known.renewed.generation.uuid
    assert guest.run(ADDRESS) == "10.77.0.200/24"
    assert guest.run("echo $A") == "token"


def test_clones_differ_from_their_source_and_from_one_another(cloud: Cloud, source: Any, warm: str) -> None:
    servers = [cloud.spawn(warm, **FLAVOR) for _ in range(2)]
    try:
        seen = [read(cloud, server) for server in (source, *servers)]
        for what in OWN:
            assert len({one[what] for one in seen}) == 3, (what, seen)
        for server, one in zip(servers, seen[1:], strict=True):
            (vif,) = server.get_network_info()
            assert one["host name"] == server.hostname
            assert one["card"] == vif["address"]
            assert one["address"] == f"{vif.fixed_ips()[0]['address']}/24"
            assert cloud.guest(server).run("echo $A") == "token", "it was booted, not restored"
            assert server.system_metadata["liveclone_identity"] == "verified"
            result, evidence = read_event(server)
            assert result.startswith("Success: verified and its cards")
            assert evidence.verified
            assert source.uuid in evidence.compared_with
        assert servers[0].uuid in read_event(servers[1])[1].compared_with
        genids = {domain_xml.parse_domain(cloud.domain(one).XMLDesc()).genid for one in (source, *servers)}
        assert len(genids) == 3
    finally:
        for server in servers:
            cloud.destroy(server)


def test_the_card_comes_when_all_is_verified(
    cloud: Cloud, warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = cloud.make_instance(warm, **FLAVOR)
    state = conf.folder("states") / cloud.images.images[warm]["properties"]["live_snapshot_state"]
    attach, seen = cloud.driver.attach_interface, []

    def watch(*arguments: Any) -> None:
        assert "<interface" not in cloud.domain(server).XMLDesc()
        record = json.loads((state / "evidence" / f"{server.uuid}.json").read_text())["evidence"]
        seen.append((record["findings"], record["cards"], {item["item"] for item in record["items"]}))
        attach(*arguments)

    monkeypatch.setattr(cloud.driver, "attach_interface", watch)
    cloud.spawn(instance=server)
    try:
        ((findings, cards, items),) = seen
        assert findings == []
        assert cards is None
        assert "machine_id" in items
        assert cloud.guest(server).run("cat /run/cards-when-cloned") == "lo"
        assert cloud.guest(server).run("cat /sys/class/net/eth0/operstate") != ""
    finally:
        cloud.destroy(server)


def test_a_card_that_neutron_has_yet_to_wire_comes_all_the_same(cloud: Cloud, warm: str) -> None:
    """Nova has the guest stand still until then."""
    server = cloud.make_instance(warm, **FLAVOR)
    (vif,) = server.get_network_info()
    vif["active"] = False
    cloud.spawn(instance=server)
    try:
        assert cloud.guest(server).run(ADDRESS) == f"{vif.fixed_ips()[0]['address']}/24"
    finally:
        cloud.destroy(server)


def test_key_user_data_and_metadata_of_the_new_server_are_applied(cloud: Cloud, warm: str) -> None:
    server = cloud.make_instance(warm, **FLAVOR)
    server.key_name, server.key_data = "mine", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 mine"
    server.user_data = base64.b64encode(b"#!/bin/sh\nhostname >/run/user-data\n").decode()
    server.metadata = {"role": "worker"}
    cloud.spawn(instance=server)
    try:
        guest = cloud.guest(server)
        assert guest.run("cat /root/.ssh/authorized_keys") == server.key_data
        assert guest.run("cat /run/user-data") == server.hostname
        assert json.loads(guest.run("cat /var/lib/liveclone/metadata.json")) == {"role": "worker"}
    finally:
        cloud.destroy(server)


def test_the_evidence_is_kept_and_can_be_checked(cloud: Cloud, source: Any, clone: Any) -> None:
    folder = Path(CONF.instances_path)
    kept = base.decode((folder / clone.uuid / "evidence.json").read_bytes(), Proof, "it")
    key = signature.HostKey(folder / "liveclone" / "host.key", folder / "liveclone" / "host.key.lock")
    found = proof.check(kept, key.public_raw(), "it")
    assert found.holds, (found.problems, found.findings)
    assert {"hostname", "machine_id", "rng", "ssh_host_keys", "network"} <= set(found.items)
    assert source.uuid in {one.machine for one in found.compared_with}
    assert read_event(clone)[1].items == base.convert(kept.subject.evidence, Evidence, "it").items


def test_a_clone_of_a_clone_is_a_machine_of_its_own_too(cloud: Cloud, clone: Any) -> None:
    image = cloud.take(clone)
    assert cloud.images.images[image]["properties"]["live_snapshot_identity"] == "verifiable"
    last = cloud.spawn(image, **FLAVOR)
    try:
        first, second = read(cloud, clone), read(cloud, last)
        assert [what for what in OWN if first[what] == second[what]] == []
        assert cloud.guest(last).run("echo $A") == "token"
    finally:
        cloud.destroy(last)


def test_a_value_that_stays_the_sources_ends_the_build(
    cloud: Cloud, agent_image: str, warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = boot(cloud, agent_image)
    try:
        cloud.guest(server).run(
            "mount -o bind /etc/machine-id /etc/machine-id; mount -o remount,ro,bind /etc/machine-id"
        )
        image = cloud.take(server)
        words, refused = refuse(cloud, image, monkeypatch)
        assert "not verified as a machine of its own: machine_id:" in words
        result, evidence = read_event(refused)
        assert result.startswith("Error: not verified: machine_id:")
        assert [found.item for found in evidence.findings] == ["machine_id"]
        state = conf.folder("states") / cloud.images.images[image]["properties"]["live_snapshot_state"]
        assert (state / "evidence" / f"{refused.uuid}.json").exists(), "what the operator looks at"
    finally:
        cloud.destroy(server)


def test_a_value_that_a_sibling_has_ends_the_build(
    cloud: Cloud, warm: str, clone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that renews nothing and reports what it likes has to know what its siblings reported; say it does."""
    become = identify.become
    _, known = read_event(clone)
    theirs = {item.item: item for item in known.items}

    async def lie(*arguments: Any) -> Evidence:
        told = await become(*arguments)
        items = tuple(theirs[item.item] if item.item == "ssh_host_keys" else item for item in told.items)
        changed: Evidence = told.replace(items=items)
        return changed

    monkeypatch.setattr(identify, "become", lie)
    words, _ = refuse(cloud, warm, monkeypatch)
    assert f"ssh_host_keys: its new value is that of {clone.hostname}" in words


def test_an_agent_that_stands_still_in_the_memory_ends_the_build(
    cloud: Cloud, source: Any, warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped when it has prepared, and goes on in the source alone."""
    guest = cloud.guest(source)
    take_out, put_back = Vifs.take_out, Vifs.put_back

    def stop(vifs: Any) -> None:
        take_out(vifs)
        guest.run(STOP_AGENT)

    def go_on(vifs: Any) -> None:
        guest.run(CONTINUE_AGENT)
        put_back(vifs)

    with monkeypatch.context() as patch:
        patch.setattr(Vifs, "take_out", stop)
        patch.setattr(Vifs, "put_back", go_on)
        image = cloud.take(source)
    words, _ = refuse(cloud, image, monkeypatch)
    assert "did not answer identify" in words


@pytest.fixture
def mute(cloud: Cloud, agent_image: str) -> Iterator[Any]:
    """A server whose agent has ended."""
    server = boot(cloud, agent_image)
    cloud.guest(server).run(END_AGENT)
    yield server
    cloud.destroy(server)


def test_without_an_agent_a_server_is_captured_and_its_clones_are_refused_or_marked(
    cloud: Cloud, warm: str, mute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = cloud.take(mute)
    reason = f"nobody in the guest has opened the port {PORT}"
    assert describe(cloud, image).no_identity == reason
    assert describe(cloud, image).identity is None
    assert cloud.images.images[image]["properties"]["live_snapshot_identity"] == reason
    with monkeypatch.context() as patch:
        words, _ = refuse(cloud, image, patch)
    assert reason in words
    assert "[liveclone]/unverified_clones is off" in words
    CONF.set_override("unverified_clones", True, group="liveclone")
    try:
        server = cloud.spawn(image, **FLAVOR)
    finally:
        CONF.set_override("unverified_clones", False, group="liveclone")
    assert server.system_metadata["liveclone_identity"] == "unverified"
    event = EVENTS[server.uuid]
    assert (event.result, event.details) == (f"Unverified: it starts as its source was: {reason}", None)
    assert cloud.guest(server).run("echo $A; hostname") == cloud.guest(mute).run("echo $A; hostname")
    cloud.destroy(server)


def test_a_source_that_cannot_be_renewed_is_not_captured(
    cloud: Cloud, source: Any, warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its random numbers to come would be in the image."""

    async def fail(*_: Any) -> Any:
        raise GuestError("the agent failed at resume")

    images = set(cloud.images.images)
    with monkeypatch.context() as patch:
        patch.setattr(identify, "refresh", fail)
        with pytest.raises(LiveSnapshotFailed, match="failed at resume"):
            cloud.take(source)
    assert set(cloud.images.images) == images
    assert cloud.guest(source).run(ADDRESS) == "10.77.0.200/24"


def test_an_application_that_cannot_prepare_bars_the_capture(cloud: Cloud, source: Any, warm: str) -> None:
    guest, hook = cloud.guest(source), "/etc/liveclone/hooks.d/prepare/10-refuse"
    guest.run(
        f"mkdir -p {Path(hook).parent}; printf '#!/bin/sh\nexit 3\n' >{hook}; chmod 755 {hook}; rm -f /run/resumed"
    )
    try:
        with pytest.raises(LiveSnapshotFailed, match="prepare"):
            cloud.take(source)
    finally:
        guest.run(f"rm {hook}")
    assert "resumed" in guest.run("cat /run/resumed")
    assert guest.run(ADDRESS) == "10.77.0.200/24"


def test_after_nova_computes_death_the_agent_is_told_too(
    cloud: Cloud, source: Any, warm: str, libvirtd: Any
) -> None:
    guest = cloud.guest(source)
    guest.run("rm -f /run/resumed")
    before = guest.run("cat /run/liveclone/generation")
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.die", CONF.state_path, libvirtd.uri, str(libvirtd.pid)],
        cwd=NOVA,
        env={**os.environ, "LIVECLONE_FAULT": "stream.frozen=kill"},
        input=json.dumps(source.obj_to_primitive()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr[-3000:]
    assert "<interface" not in cloud.domain(source).XMLDesc()
    recovery.settle_all(cloud.driver)
    assert guest.run("cat /run/liveclone/generation") != before
    assert "resumed" in guest.run("cat /run/resumed")
    assert guest.run(ADDRESS) == "10.77.0.200/24"
