"""A snapshot is removed while its clones run: they go on, with memory and disk that they have never looked at before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from liveclone.engine import remove
from liveclone.model.machine import Machine
from liveclone.model.snapshot import CaptureMethod, Snapshot
from tests.fault.conftest import Sources
from tests.machines import Lab, Operation

# Random, so that neither a hole nor a page of zeros can stand for it; on disk, and in memory alone.
WRITE = "head -c 8000000 /dev/urandom | tee /var/lib/blob > /run/blob; sync; sha256sum < /run/blob"
READ = "echo 3 > /proc/sys/vm/drop_caches; sha256sum < /var/lib/blob; sha256sum < /run/blob"


def write(lab: Lab, machine: Machine) -> str:
    """Return what READ prints in the machine, and in each of its clones."""
    line = lab.shell(machine, WRITE)
    return f"{line}\n{line}"


def check_reads(lab: Lab, machine: Machine, expected: str) -> None:
    """Fail unless the machine has what it has never read since it became one, and can write, too."""
    assert lab.shell(machine, READ) == expected
    lab.shell(machine, f"echo {machine.name} > /var/lib/mine; sync; echo 3 > /proc/sys/vm/drop_caches")
    assert lab.shell(machine, "cat /var/lib/mine") == machine.name


def parts(lab: Lab, taken: Snapshot) -> list[str]:
    """Return the names of the files that are left of a snapshot."""
    assert taken.hot is not None
    hot = [path.name for path in (Path(taken.hot.path),) if path.exists()]
    folder = lab.ctx.layout.snapshot(taken.id)
    return hot + sorted(path.name for path in folder.iterdir()) if folder.exists() else hot


@pytest.mark.parametrize("memory", ["hot", "disk"])
def test_clones_go_on(lab: Lab, sources: Sources, memory: str) -> None:
    source = sources.any()
    blob = write(lab, source)
    taken = lab.wait_sealed(lab.snapshot(source, method=CaptureMethod.BACKGROUND))
    assert taken.hot is not None
    if memory == "disk":
        Path(taken.hot.path).unlink()  # what a reboot of the host does
    clones = lab.clones(taken, 2)
    lab.remove_snapshot(taken)
    # Memory, state and evidence are gone at once; the layer stays, as three disks stand on it.
    assert parts(lab, taken) == ["disk.qcow2"]
    assert lab.find_faults() == []
    for clone in clones:
        check_reads(lab, clone, blob)
        assert lab.http(clone)["token"] == sources.token
    sources.check()
    lab.remove(*clones)
    assert parts(lab, taken) == ["disk.qcow2"]  # the source's disk stands on it
    assert lab.shell(source, READ) == blob


def test_what_is_left_goes_with_the_last_who_needs_it(lab: Lab, sources: Sources) -> None:
    """A snapshot of a clone: both snapshots are removed, then the machine in the middle, then clone after clone."""
    first = lab.snapshot(sources.any(), method=CaptureMethod.BACKGROUND)
    middle = lab.clone(first)
    blob = write(lab, middle)
    second = lab.snapshot(middle)
    one, other = lab.clones(second, 2)
    lab.snapshots_sealed()
    lab.remove_snapshot(first)
    lab.remove_snapshot(second)
    lab.remove(middle)
    assert parts(lab, first) == parts(lab, second) == ["disk.qcow2"]
    check_reads(lab, one, blob)
    lab.remove(one)
    assert parts(lab, first) == parts(lab, second) == ["disk.qcow2"]
    check_reads(lab, other, blob)
    # A machine whose snapshot is gone is a machine like any other: it can be a source.
    third = lab.snapshot(other)
    lab.remove(other)
    assert parts(lab, second) == ["disk.qcow2"]
    last = lab.clone(third)
    check_reads(lab, last, blob)
    lab.snapshots_sealed()
    lab.remove_snapshot(third)
    lab.remove(last)
    assert parts(lab, second) == parts(lab, third) == []
    assert parts(lab, first) == ["disk.qcow2"]  # the source's disk stands on it
    sources.check()


def test_a_removal_waits_for_clones_that_are_just_starting(lab: Lab, sources: Sources) -> None:
    taken = lab.snapshot(sources.any(), method=CaptureMethod.BACKGROUND)
    lab.snapshots_sealed()

    async def remove_meanwhile(cloning: Operation) -> None:
        removal = asyncio.create_task(remove.remove_snapshot(lab.ctx, taken.id))
        done, _ = await asyncio.wait({removal}, timeout=0.3)
        assert not done and len(parts(lab, taken)) > 1
        cloning.go_on("clone.loaded")
        await removal

    with Operation(lab, "clone", stops=["clone.loaded"], snapshot=taken.id, names=["early"]) as cloning:
        cloning.reach("clone.loaded")
        lab.wait(remove_meanwhile(cloning))
        assert cloning.result()["ok"] == [{"name": "early", "error": None}]
    assert parts(lab, taken) == ["disk.qcow2"]
    early = lab.ctx.machines.find("early")
    assert lab.http(early)["token"] == sources.token
    lab.remove(early)
