"""Sealing: a snapshot is called sealed when every part of it is on durable storage, and not a moment before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest

from liveclone.engine import seal
from liveclone.errors import Corrupt
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.snapshot import Snapshot, SnapshotState
from tests.machines import Lab, check_clear
from tests.vm.conftest import Story


@pytest.fixture(scope="module")
def origin(lab: Lab, story: Story) -> Iterator[Machine]:
    """A clone that snapshots are taken of, so that the source's own stay as they are."""
    machine = lab.clone(story.snapshot)
    lab.shell(machine, "echo kept > /run/mark; echo kept > /var/lib/mark; sync")
    yield machine
    lab.remove(machine)


@pytest.fixture
def taken(lab: Lab, origin: Machine) -> Iterator[Snapshot]:
    found = lab.snapshot(origin)
    yield found
    for machine in lab.ctx.machines.list():
        if machine.clone_of == found.id:
            lab.remove(machine)
    lab.snapshots_sealed()
    lab.remove_snapshot(found)


def digest(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


def test_a_sealed_snapshot_is_what_was_captured(lab: Lab, story: Story) -> None:
    """The durable copy equals the hot image, though the source and many clones have run on it since."""
    sealed = lab.wait_sealed(story.snapshot)
    folder = lab.ctx.layout.snapshot(sealed.id)
    assert sealed.hot is not None
    assert sealed.memory.digest == digest(folder / "memory") == digest(Path(sealed.hot.path))
    assert sealed.device_state.digest == digest(folder / "state")
    assert sealed.disk.digest == digest(folder / "disk.qcow2")
    for part in (sealed.memory, sealed.device_state, sealed.disk):
        assert part.size_bytes == (folder / part.file).stat().st_size
    # Its holes are holes: it takes what the guest has touched, not what it could have.
    assert (folder / "memory").stat().st_blocks * 512 < sealed.hardware.ram_bytes


def test_nobody_can_write_the_parts(lab: Lab, story: Story) -> None:
    sealed = lab.wait_sealed(story.snapshot)
    assert sealed.hot is not None
    folder = lab.ctx.layout.snapshot(sealed.id)
    for path in (folder / "memory", folder / "state", folder / "disk.qcow2", Path(sealed.hot.path)):
        assert path.stat().st_mode & 0o222 == 0, path


def test_waiting_for_the_seal(lab: Lab, origin: Machine) -> None:
    sealed = lab.snapshot(origin, wait_sealed=True)
    assert sealed.state is SnapshotState.SEALED
    assert (lab.ctx.layout.snapshot(sealed.id) / "memory").exists()
    lab.remove_snapshot(sealed)


def test_clones_start_while_it_is_being_sealed(lab: Lab, taken: Snapshot, source: Machine) -> None:
    assert taken.state is SnapshotState.READY
    machine = lab.clone(taken)
    assert lab.http(machine)["token"] == lab.http(source)["token"]


def test_after_a_reboot_of_the_host_clones_start_from_the_sealed_copy(
    lab: Lab, taken: Snapshot, source: Machine
) -> None:
    sealed = lab.wait_sealed(taken)
    assert sealed.hot is not None
    Path(sealed.hot.path).unlink()  # tmpfs is empty then
    machines = lab.clones(sealed, 2)
    for machine in machines:
        assert machine.memory is not None
        assert machine.memory.source is MemorySource.PRIVATE_DISK
        assert lab.shell(machine, "cat /run/mark /var/lib/mark") == "kept\nkept"
        assert lab.http(machine)["token"] == lab.http(source)["token"]
    assert digest(lab.ctx.layout.snapshot(sealed.id) / "memory") == sealed.memory.digest


def test_without_a_seal_a_reboot_is_the_end_of_it_and_it_says_so(
    lab: Lab, origin: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVECLONE_FAULT", "seal.begun=kill")  # of the process that seals, which inherits it
    taken = lab.snapshot(origin)
    lab.snapshots_sealed()
    assert lab.ctx.snapshots.load(taken.id).state is SnapshotState.READY
    assert taken.hot is not None
    Path(taken.hot.path).unlink()
    with pytest.raises(Corrupt) as corrupt:
        lab.clone(lab.ctx.snapshots.load(taken.id))
    check_clear(corrupt.value)
    assert "no durable copy" in corrupt.value.seen
    lab.remove_snapshot(taken)


def test_two_who_seal_do_it_once(lab: Lab, taken: Snapshot) -> None:
    """A command that seals while the background does the same waits for it and is content."""
    again = lab.wait(seal.wait(lab.ctx, taken, seal.start(lab.ctx, taken)))
    assert again.state is SnapshotState.SEALED


def test_a_snapshot_removed_while_it_is_sealed_does_not_come_back(lab: Lab, origin: Machine) -> None:
    """What the sealing process leaves is looked at after each test, too."""
    taken = lab.snapshot(origin)
    lab.remove_snapshot(taken)
    lab.snapshots_sealed()
    assert taken.id not in [found.id for found in lab.ctx.snapshots.list()]
    folder = lab.ctx.layout.snapshot(taken.id)
    assert [path.name for path in folder.iterdir()] == ["disk.qcow2"]  # the origin's disk stands on it
