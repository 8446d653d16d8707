"""Live clones: what they have of their source (memory, disk, warmth) and what they must not have (its identity)."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveclone.engine import audit
from liveclone.engine import clone as clones
from liveclone.host import process
from liveclone.model.identity import Evidence, ItemStatus
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.parameters import Parameters
from liveclone.model.snapshot import Snapshot
from tests.conftest import Needs
from tests.machines import TICKS, Lab
from tests.vm.conftest import Story

COUNT = 4
DRAWS = {
    "getrandom": "python3 -c 'import os; print(os.getrandom(16).hex())'",
    "device": "head -c16 /dev/urandom | od -An -tx1 | tr -d ' '",
    "uuid": "python3 -c 'import uuid; print(uuid.uuid4())'",
    "kernel": "cat /proc/sys/kernel/random/uuid",
}


@dataclass
class Family:
    """Clones that came up together, what each drew first of all, and what each says of itself."""

    results: list[clones.Result]
    machines: list[Machine]
    draws: list[dict[str, str]]
    apps: list[dict[str, Any]]


@pytest.fixture(scope="module")
def family(lab: Lab, story: Story) -> Iterator[Family]:
    results = lab.results(story.snapshot, COUNT)
    assert [result.error for result in results] == [None] * COUNT
    machines = [result.machine for result in results if result.machine]
    draws = []
    for machine in machines:
        drawn = lab.shell(machine, "\n".join(DRAWS.values())).split()
        draws.append(dict(zip(DRAWS, drawn, strict=True)))
    apps = [lab.http(machine, "/identity") for machine in machines]
    yield Family(results, machines, draws, apps)
    lab.remove(*machines)


def pairwise_distinct(values: list[Any]) -> bool:
    return all(values) and len(set(values)) == len(values)


def evidence_of(lab: Lab, story: Story, machine: Machine) -> Evidence:
    found = lab.ctx.evidence(story.snapshot.id).load(machine.id)
    assert found is not None
    return found


# ---------------------------------------------------------------------- what a clone has of its source


def test_they_are_warm(family: Family, story: Story) -> None:
    """The token and the index exist in the source's memory alone: no disk, no start of the application gives them."""
    for app in family.apps:
        assert (app["token"], app["index"]) == (story.app_before["token"], story.app_before["index"])


def test_they_did_not_boot(lab: Lab, family: Family, story: Story) -> None:
    for machine in family.machines:
        assert float(lab.shell(machine, "cut -d' ' -f1 /proc/uptime")) > story.uptime_before_s


def test_their_disk_is_as_at_the_snapshot(lab: Lab, family: Family) -> None:
    """The source has overwritten, removed and added since (see `story`). Read from the disk, not from the page cache."""
    seen = lab.shell(
        family.machines[0],
        "sync; echo 3 > /proc/sys/vm/drop_caches; cat /var/lib/written /var/lib/unsynced; ls /var/lib/new 2>&1 || :",
    )
    assert seen.splitlines()[:2] == ["of-the-source", "unsynced"]
    assert "No such file" in seen


def test_disks_are_independent(lab: Lab, family: Family, source: Machine) -> None:
    first, second, *_ = family.machines
    lab.shell(first, "echo first > /var/lib/written; sync")
    lab.shell(second, "echo second > /var/lib/written; sync")
    drop = "echo 3 > /proc/sys/vm/drop_caches; cat /var/lib/written"
    assert [lab.shell(m, drop) for m in (first, second, source)] == ["first", "second", "later"]


def test_memory_is_independent(lab: Lab, family: Family, source: Machine) -> None:
    """/run is memory."""
    first, second, *_ = family.machines
    for machine in (first, second):
        lab.shell(machine, f"yes {machine.name} | head -c 262144 > /run/mark")
    for machine in (first, second):
        assert lab.shell(machine, "sort -u /run/mark | head -c 40").split()[0] == machine.name
    assert lab.shell(source, "ls /run/mark 2>&1 || :").endswith("No such file or directory")


def test_they_share_the_memory_image_and_cannot_write_it(family: Family, story: Story) -> None:
    assert story.snapshot.hot is not None
    for machine in family.machines:
        assert machine.memory is not None and machine.process is not None
        assert machine.memory.source is MemorySource.PRIVATE_HOT
        assert machine.memory.path == story.snapshot.hot.path
        mapped = [
            line.split()[1]
            for line in Path(f"/proc/{machine.process.pid}/maps").read_text().splitlines()
            if line.rstrip().endswith(story.snapshot.hot.path)
        ]
        assert mapped and all(mode.endswith("p") for mode in mapped)


def test_a_clone_leaves_its_disk_in_the_page_cache(lab: Lab, snapshotted: Snapshot, needs: Needs) -> None:
    """QEMU's own way is to drop all of it, so that each clone would read it from the disk anew.

    Looked at on the snapshot's layer: the image below belongs to other tests, and to libvirt's clones, too.
    """
    needs("fincore")
    layer = lab.ctx.layout.snapshot(snapshotted.id) / snapshotted.disk.file
    lab.wait_sealed(snapshotted)
    layer.read_bytes()
    before = cached_bytes(layer)
    assert before > layer.stat().st_blocks * 512 * 0.9
    lab.remove(lab.clone(snapshotted))
    assert cached_bytes(layer) > before * 0.9


def cached_bytes(file: Path) -> int:
    words = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(file)]
    return int(subprocess.run(words, check=True, capture_output=True).stdout)


# ---------------------------------------------------------------------- what a clone has of its own


def test_identities_are_distinct(family: Family, story: Story) -> None:
    for what in ("hostname", "machine_id", "host_key", "mac", "random"):
        values = [app[what] for app in (story.app_before, *family.apps)]
        assert pairwise_distinct(values), f"{what}: {values}"
    assert [app["hostname"] for app in family.apps] == [machine.name for machine in family.machines]


@pytest.mark.parametrize("draw", DRAWS)
def test_random_draws_are_distinct(family: Family, draw: str) -> None:
    values = [drawn[draw] for drawn in family.draws]
    assert pairwise_distinct(values), values


def test_generations_are_distinct(lab: Lab, family: Family, story: Story) -> None:
    machines = [*family.machines, story.before, story.after]
    assert pairwise_distinct([machine.generation.uuid for machine in machines])
    genids = [lab.qmp(machine, "query-vm-generation-id")["guid"] for machine in family.machines]
    assert pairwise_distinct([*genids, story.vmgenid_before, story.vmgenid_after])
    for machine in family.machines:
        assert machine.generation.uuid in lab.shell(machine, "cat /run/liveclone/generation")


def test_evidence_covers_every_item(lab: Lab, family: Family, story: Story, source: Machine) -> None:
    """Each required item has changed from the snapshot and differs from all the others' and the source's."""
    observed = {item.item: item for item in story.snapshot.items}
    all_evidence = [evidence_of(lab, story, machine) for machine in family.machines]
    for evidence, result in zip(all_evidence, family.results, strict=True):
        assert result.evidence == evidence
        assert evidence.verified
        assert evidence.snapshot == story.snapshot.id
        assert source.id in evidence.compared_with
        reported = {item.item: item for item in evidence.items}
        assert {"rng", "clock", "hostname", "machine_id", "ssh_host_keys", "network"} <= set(reported)
        for name in ("rng", "hostname", "machine_id", "boot_id", "random_seed", "ssh_host_keys"):
            assert reported[name].required
            assert reported[name].status is ItemStatus.CHANGED
            assert reported[name].after not in ("", reported[name].before, observed[name].before)
            assert reported[name].took_ms > 0
        assert reported["clock"].status is ItemStatus.CONFIGURED
        assert reported["login_sessions"].details == {"killed": "0"}
        # What this guest does not have: nothing to resume from, no swap area, no UUID in its firmware, no vsock.
        for name in ("hibernation", "swap", "dmi_uuid", "vsock_cid"):
            assert reported[name].status is ItemStatus.ABSENT
    for one, other in itertools.combinations(all_evidence, 2):
        assert one.machine in other.compared_with or other.machine in one.compared_with
        after = [{item.item: item.after for item in e.items if item.after} for e in (one, other)]
        assert {n for n, digest in after[0].items() if n != "clock" and after[1].get(n) == digest} == set()


def test_evidence_holds_no_secret(lab: Lab, family: Family, story: Story) -> None:
    """Digests are keyed: the plain digest of a machine-id, which anybody can compute, is not in there."""
    for machine, app in zip(family.machines, family.apps, strict=True):
        path = lab.ctx.layout.snapshot(story.snapshot.id) / "evidence" / f"{machine.id}.json"
        text = path.read_text()
        assert app["machine_id"] not in text
        for digest in (hashlib.sha256, hashlib.blake2b, hashlib.sha1):
            assert digest(app["machine_id"].encode()).hexdigest() not in text


def test_machine_id_and_host_name_are_everywhere(lab: Lab, family: Family) -> None:
    for machine, app in zip(family.machines, family.apps, strict=True):
        seen = lab.shell(
            machine,
            "cat /etc/machine-id /var/lib/dbus/machine-id /etc/hostname; hostname; uname -n; getent hosts "
            f"{machine.name} | tr -s ' '; cat /etc/hosts",
        ).splitlines()
        assert seen[:5] == [app["machine_id"]] * 2 + [machine.name] * 3
        assert seen[5] == f"127.0.1.1 {machine.name}"
        assert "web" not in "\n".join(seen[6:]).split()


def test_each_has_a_boot_id_that_is_seen_everywhere(lab: Lab, family: Family, story: Story) -> None:
    """Also where a service has a mount namespace of its own, from before the snapshot (logind, udev) or made now."""
    file = "/proc/sys/kernel/random/boot_id"
    own = (
        "systemd-run -q --wait --pipe -p PrivateTmp=yes -p ProtectSystem=strict -p ProtectKernelTunables=yes"
    )
    seen = []
    for machine in family.machines:
        ids = lab.shell(
            machine,
            f"cat {file} /run/liveclone/boot_id\nfor name in systemd-logind systemd-udevd warm-app; do\n"
            f"cat /proc/$(systemctl show -P MainPID $name)/root{file}\ndone\n{own} cat {file}\nsystemd-id128 -u boot-id",
        ).split()
        assert len(ids) == 7
        assert len(set(ids)) == 1, ids
        seen.append(ids[0])
    assert pairwise_distinct([*seen, story.boot_before])


def test_the_journal_goes_on_as_the_clones_own(lab: Lab, family: Family, story: Story) -> None:
    """journald starts anew a moment after a clone is ready. What the source wrote is there, as the source's."""
    ids, numbers = [], []
    for machine, evidence in ((m, evidence_of(lab, story, m)) for m in family.machines):
        (item,) = [one for one in evidence.items if one.item == "journal"]
        assert (item.status, item.after) == (ItemStatus.PENDING, "")
        told = lab.shell(
            machine,
            "until [ -e /var/log/journal/$(cat /etc/machine-id)/system.journal ]; do sleep 0.1; done\n"
            "echo here | systemd-cat -t test; journalctl --sync; journalctl -t test -o json; systemd-id128 boot-id\n"
            f"journalctl --merge -o json -n 1 _HOSTNAME={story.before.name}",
        )
        own, boot_id, of_the_source = told.splitlines()
        own, of_the_source = json.loads(own), json.loads(of_the_source)
        assert (own["MESSAGE"], own["_BOOT_ID"]) == ("here", boot_id)
        assert own["_HOSTNAME"] == machine.name
        assert of_the_source["_HOSTNAME"] == story.before.name
        assert of_the_source["_BOOT_ID"] != boot_id
        ids.append(own["_MACHINE_ID"])
        numbers.append(own["__SEQNUM_ID"])
        assert pairwise_distinct([own["__SEQNUM_ID"], of_the_source["__SEQNUM_ID"]])
    assert ids == [app["machine_id"] for app in family.apps]
    assert pairwise_distinct(numbers)


def test_sshd_serves_the_new_keys(lab: Lab, family: Family, story: Story, source: Machine) -> None:
    """Asked over the network by the source, which also shows that machines reach one another on the bridge."""
    machines = [source, *family.machines]
    by_ip = {machine.nics[0].ip: machine for machine in machines}
    printed = lab.shell(source, f"ssh-keyscan -T 60 -t ed25519,ecdsa {' '.join(by_ip)} 2>/dev/null")
    served: dict[str, set[str]] = {}
    for line in printed.splitlines():
        if line.startswith("#"):  # which sshd it is
            continue
        ip, _, key = line.split()
        digest = hashlib.sha256(base64.b64decode(key)).digest()
        served.setdefault(ip, set()).add("SHA256:" + base64.b64encode(digest).decode().rstrip("="))
    assert set(served) == set(by_ip)
    assert all(len(found) == 2 for found in served.values()), served
    assert pairwise_distinct([key for found in served.values() for key in found])
    for ip, machine in by_ip.items():
        if machine is source:
            assert story.app_before["host_key"] in served[ip]
            continue
        reports = {item.item: item for item in evidence_of(lab, story, machine).items}
        told = reports["ssh_host_keys"].details
        assert {told["ed25519"], told["ecdsa"]} == served[ip]


def test_other_programs_do_not_wait_any_more(lab: Lab, family: Family) -> None:
    """While the clone became itself they were last (SCHED_IDLE); udev's workers of that time end by themselves."""
    for machine in family.machines:
        last = lab.shell(machine, """ps -eLo cls=,comm= | awk '$1 == "IDL" { print $2 }'""")
        assert set(last.split()) <= {"(udev-worker)"}


def test_clocks_are_right(lab: Lab, family: Family) -> None:
    """The snapshot was taken seconds ago: a clock that went on from there would show it."""
    for machine in family.machines:
        before = time.time()
        clock = float(lab.shell(machine, "date +%s.%N"))
        assert before - 1.0 < clock < time.time() + 1.0, machine.name


def test_mac_and_address_are_as_leased(lab: Lab, family: Family, story: Story) -> None:
    macs, addresses = [], []
    for machine, app in zip(family.machines, family.apps, strict=True):
        (nic,) = machine.nics
        assert app["mac"] == nic.mac
        assert int(nic.mac[:2], 16) & 3 == 2  # locally administered, unicast
        assert f" {nic.address} " in lab.shell(machine, "ip -br -4 address") + " "
        assert lab.shell(machine, "ip route").startswith(f"default via {nic.gateway}")
        macs.append(nic.mac)
        addresses.append(nic.address)
    nic = story.before.nics[0]
    assert pairwise_distinct([*macs, nic.mac])
    assert pairwise_distinct([*addresses, nic.address])


def test_connections_of_the_source_are_ended(lab: Lab, family: Family, story: Story) -> None:
    """At the snapshot a client was connected. The source keeps that connection (test_handover), a clone has none."""
    for machine in family.machines:
        (item,) = [one for one in evidence_of(lab, story, machine).items if one.item == "connections"]
        assert item.status is ItemStatus.CONFIGURED
        assert int(item.details["ended"]) >= 1
        connected = lab.shell(machine, "ss --no-header --tcp --numeric state established")
        assert f":{TICKS} " not in connected, connected


def test_an_audit_finds_all_distinct_and_what_was_made_equal(lab: Lab, family: Family, story: Story) -> None:
    audited = lab.wait(audit.audit(lab.ctx, story.snapshot.id))
    assert audited.equal == ()
    assert {one.name for one in audited.members} >= {story.before.name, *(m.name for m in family.machines)}
    wanted = {"rng", "hostname", "machine_id", "boot_id", "journal", "ssh_host_keys", "network"}
    wanted |= {f"draw {name}" for name in ("urandom", "kernel-uuid", "ssh-key", "python")}
    for member in audited.members[1:]:
        assert member.digests.keys() >= wanted, member.name
    first, second = family.machines[:2]
    own = lab.shell(second, "cat /etc/machine-id")
    lab.shell(second, f"echo {lab.shell(first, 'cat /etc/machine-id')} >/etc/machine-id")
    try:
        audited = lab.wait(audit.audit(lab.ctx, story.snapshot.id))
    finally:
        lab.shell(second, f"echo {own} >/etc/machine-id")
    assert [(one.what, {one.first, one.second}) for one in audited.equal] == [
        ("machine_id", {first.name, second.name})
    ]


def test_a_name_can_be_chosen_and_is_taken_then(lab: Lab, story: Story) -> None:
    machine = lab.clone(story.snapshot, names=["chosen"])
    try:
        assert machine.name == "chosen"
        assert lab.shell(machine, "hostname") == "chosen"
        with pytest.raises(Exception, match="taken"):
            lab.clone(story.snapshot, names=["chosen"])
    finally:
        lab.remove(machine)


def test_an_address_is_given_back_and_a_mac_is_not(lab: Lab, clone: Machine) -> None:
    nic = clone.nics[0]
    assert nic.ip in (lab.ctx.layout.network / "leases.json").read_text()
    lab.remove(clone)
    assert nic.ip not in (lab.ctx.layout.network / "leases.json").read_text()
    assert nic.mac in (lab.ctx.layout.network / "macs").read_text()
    assert not process.is_alive(clone.process)


def test_what_the_user_gives_a_clone(lab: Lab, snapshotted: Snapshot) -> None:
    key, script = "ssh-ed25519 AAAAC3 ann", "#!/bin/sh\necho $LIVECLONE_HOSTNAME >/root/told\n"
    given = Parameters(
        hostname="app.example", address="10.213.9.9", ssh_keys=(key,), user_data=script, metadata={"a": "b"}
    )
    machine = lab.clone(snapshotted, parameters=[given])
    assert machine.nics[0].ip == "10.213.9.9"
    assert lab.http(machine, "/identity")["hostname"] == "app.example"
    told = lab.shell(machine, "hostname; cat /root/told; tail -n 1 /root/.ssh/authorized_keys")
    assert told == f"app.example\napp.example\n{key}"
    modes = (
        "/root/.ssh /root/.ssh/authorized_keys /var/lib/liveclone/user-data /var/lib/liveclone/metadata.json"
    )
    assert lab.shell(machine, f"stat -c %a {modes}").split() == ["700", "600", "700", "644"]
    lab.remove(machine)
