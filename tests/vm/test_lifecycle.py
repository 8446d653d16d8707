"""Stop, start and reboot: of machines whose disk is a chain of layers, and which are somebody because of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from liveclone.host import process
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.snapshot import CaptureMethod
from tests.machines import Lab
from tests.vm.conftest import Story


@pytest.fixture(scope="module")
def machine(lab: Lab, story: Story) -> Iterator[Machine]:
    """A clone that the tests here stop, start and reboot, one after the other."""
    machine = lab.clone(story.snapshot, names=["restarted"])
    yield machine
    lab.remove(machine)


def test_a_clone_is_stopped_and_started(lab: Lab, machine: Machine, story: Story) -> None:
    """It boots from its own disk, and is still itself: what it became as a clone is on that disk."""
    identity = lab.http(machine, "/identity")
    lab.shell(machine, "echo mine > /var/lib/mark")
    lab.stop(machine)
    assert not process.is_alive(machine.process)
    assert lab.reload(machine).process is None
    assert not [tap for tap in lab.taps() if machine.id in tap]

    started = lab.start(machine)
    again = lab.http(started, "/identity")
    for what in ("hostname", "machine_id", "host_key", "mac"):
        assert again[what] == identity[what], what
    assert again["token"] != identity["token"]  # it has booted: the source's memory is gone
    assert lab.shell(machine, "cat /var/lib/written /var/lib/mark") == "of-the-source\nmine"
    assert f" {machine.nics[0].address} " in lab.shell(machine, "ip -br -4 address") + " "
    assert started.memory is not None and started.memory.source is MemorySource.SHARED_HOT


def test_once_started_it_can_hand_over(lab: Lab, machine: Machine) -> None:
    """It has RAM of its own again, so its next snapshot is a first one."""
    lab.shell(machine, "echo handed > /run/mark")
    taken = lab.snapshot(machine)
    assert taken.capture.method is CaptureMethod.HANDOVER
    child = lab.clone(taken)
    assert lab.shell(child, "cat /run/mark /var/lib/mark /var/lib/written") == "handed\nmine\nof-the-source"
    lab.remove(child)
    lab.remove_snapshot(taken)
    assert lab.shell(machine, "cat /var/lib/mark") == "mine"


def test_it_keeps_its_network_when_the_guest_reboots(lab: Lab, machine: Machine) -> None:
    """The host does nothing here: what the guest needs to find its address again it has itself."""
    before = lab.http(machine, "/identity")
    boot = "cat /proc/sys/kernel/random/boot_id"
    boot_before = lab.shell(machine, boot)

    lab.shell(machine, "systemctl reboot --no-block")
    while lab.http(machine)["token"] == before["token"]:
        pass  # the old application still answers
    after = lab.http(machine, "/identity")
    assert lab.shell(machine, boot) != boot_before
    for what in ("hostname", "machine_id", "host_key", "mac"):
        assert after[what] == before[what], what
    assert f" {machine.nics[0].address} " in lab.shell(machine, "ip -br -4 address") + " "
    # Nothing has given it an identity since, so its agent has bound the boot id by itself, before logind had its procfs.
    taken = lab.snapshot(machine)
    child = lab.clone(taken)
    seen = lab.shell(
        child, f"{boot} /proc/$(systemctl show -P MainPID systemd-logind)/root/proc/sys/kernel/random/boot_id"
    )
    assert len(set(seen.split())) == 1
    assert lab.shell(machine, boot) not in seen
    lab.remove(child)
    lab.remove_snapshot(taken)


def test_a_source_with_snapshots_is_stopped_and_started(lab: Lab) -> None:
    """Its disk is a chain by then; its snapshots, and machines that run from them, are not touched."""
    source = lab.boot("chained", "light")
    lab.shell(source, "echo 0 > /var/lib/chain; sync")
    first = lab.snapshot(source, "chained-first")
    lab.shell(source, "echo 1 >> /var/lib/chain; sync")
    second = lab.snapshot(source, "chained-second")
    lab.shell(source, "echo 2 >> /var/lib/chain; sync")
    copy = lab.clone(first)
    lab.stop(source, force=True)
    assert lab.shell(copy, "cat /var/lib/chain") == "0"
    source = lab.start(source)
    assert source.layers == (second.id, first.id)
    assert lab.shell(source, "cat /var/lib/chain").split() == ["0", "1", "2"]
    other = lab.clone(second)
    assert lab.shell(other, "cat /var/lib/chain").split() == ["0", "1"]
    lab.remove(copy, other)
    # The snapshots go, the layers stay as long as the source stands on them.
    lab.remove_snapshot(first)
    lab.remove_snapshot(second)
    lab.shell(source, "echo 3 > /proc/sys/vm/drop_caches")
    assert lab.shell(source, "cat /var/lib/chain").split() == ["0", "1", "2"]
    lab.remove(source)
