"""The disk that the home is on runs full: at each step of a snapshot and of a clone, while sealing, and under a guest.

A guest that writes where there is no room stands still, with all it has, until `liveclone start` (QEMU's werror=enospc).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from liveclone.engine import run, seal
from liveclone.errors import Refused, StoreError
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.snapshot import CaptureMethod, SnapshotState
from liveclone.units import MIB
from tests.fault.conftest import Sources
from tests.fault.rooms import Room, open_ext4
from tests.machines import Lab, Operation, check_clear, find_points

SIZE = 512 * MIB
# For what asks a guest that may stand still.
QUICK = {
    "identify.IDENTIFY_DEADLINE_S": 4.0,
    "wiring.CONFIGURE_DEADLINE_S": 4.0,
    "wiring.UNPLUG_DEADLINE_S": 2.0,
}
CLONE = find_points("clone")
BEFORE = [
    p for p in find_points("handover") if p.partition(".")[2] not in ("committing", "resumed", "retired")
]
# Behind the point of no return. Each costs a boot; what these meet first is what the others meet later.
AFTER = ("handover.committing", "snapshot.committed")
BACKGROUND = find_points("snapshot", "background")


@pytest.fixture(scope="module")
def disk() -> Iterator[Room]:
    folder = Path(os.environ["LIVECLONE_HOME"]).with_name("disk")
    with open_ext4(folder, SIZE) as room:
        yield room


@pytest.fixture(scope="module")
def small(images: dict[str, Image], disk: Room) -> Iterator[Lab]:
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name("disk")
    with ExitStack() as undo:
        lab = Lab(disk.folder / "home", hot, images)
        undo.callback(shutil.rmtree, hot)
        undo.callback(lab.close)
        undo.callback(disk.free)
        yield lab


@pytest.fixture(scope="module")
def residents(small: Lab) -> Sources:
    return Sources(small)


@pytest.fixture(autouse=True)
def _in_order_too(small: Lab, disk: Room) -> Iterator[None]:
    """As for the other lab (conftest); and the file system is given back."""
    yield
    disk.free()
    for machine in small.ctx.machines.list():
        go_on(small, machine)
    small.snapshots_sealed()
    faults = small.find_faults()
    for taken in small.ctx.snapshots.list():
        small.remove_snapshot(taken)
    faults += small.find_faults()
    assert not faults, "\n".join(faults)


def go_on(small: Lab, machine: Machine) -> None:
    """Let a guest go on that stands still because it wrote while there was no room."""
    small.wait(run.start(small.ctx, machine.id))


def find_faults(small: Lab) -> list[str]:
    """Return all that must not be while the disk is full: a guest may well stand still."""
    return [fault for fault in small.find_faults() if not fault.endswith(" is io-error")]


def check_works(small: Lab, residents: Sources) -> None:
    """Fail unless the source runs, with all it had, and can be captured and cloned now that there is room."""
    residents.check()
    clone = small.clone(small.snapshot(residents.any(), method=CaptureMethod.BACKGROUND))
    assert small.http(clone)["token"] == residents.token
    small.remove(clone)


def capture(small: Lab, disk: Room, source: Machine, method: str, point: str) -> dict[str, str] | None:
    """Take a snapshot during which the disk runs full at `point`; "": before. Return its error, if it had any."""
    if not point:
        disk.fill()
    stops = [point] if point else []
    arguments: dict[str, Any] = {"machine": source.id, "method": method}
    with Operation(small, "snapshot", stops=stops, deadlines=QUICK, **arguments) as operation:
        if point:
            operation.reach(point)
            disk.fill()
            operation.go_on(point)
        result = operation.result()
    disk.free()
    error: dict[str, str] | None = result.get("error")
    return error


@pytest.mark.parametrize("point", ["", *BACKGROUND])
def test_full_while_capturing_in_the_background(
    small: Lab, disk: Room, residents: Sources, point: str
) -> None:
    source = residents.any()
    error = capture(small, disk, source, "background", point)
    check_said(error, source, point)
    small.repair()
    go_on(small, source)
    residents.check()
    assert small.reload(source).process == source.process
    assert len(small.ctx.snapshots.list()) == (error is None)


@pytest.mark.parametrize("point", [*BEFORE, *AFTER])
def test_full_while_handing_over(small: Lab, disk: Room, residents: Sources, point: str) -> None:
    """Before the point of no return it is undone; behind it the new process goes on, with all that the old one had."""
    source = residents.take()
    check_said(capture(small, disk, source, "handover", point), source, point)
    small.repair()
    go_on(small, source)
    residents.check()
    after = small.reload(source)
    assert (after.process != source.process) == (point in AFTER)
    assert small.ctx.snapshots.list() == []
    check_works(small, residents)


def check_said(error: dict[str, str] | None, source: Machine, point: str) -> None:
    """Fail unless the error is clear; what was not undone is said to be for `repair`."""
    if point == "snapshot.done":
        assert error is None
        return
    assert error is not None
    assert error["error"] == "disk-full", error
    check_clear(error, source_state="running")
    assert "make room" in error["next_step"]
    left = point in (*AFTER, "background.streamed", "snapshot.committed", "snapshot.reconnected")
    left = left or "without its network" in error["source_state"]  # the guest stands still
    assert (f"liveclone repair {source.name}" in error["next_step"]) == left, error


def test_full_while_sealing(small: Lab, disk: Room, residents: Sources) -> None:
    """It is not called sealed; clones start from the hot image; with room it is sealed."""
    with Operation(
        small,
        "snapshot",
        stops=["snapshot.done"],
        machine=residents.any().id,
        method="background",
        name="big",
    ) as operation:
        operation.reach("snapshot.done")
        disk.fill(leave_bytes=8 * MIB)
        operation.go_on("snapshot.done")
        assert "ok" in operation.result()
        small.snapshots_sealed()
    taken = small.ctx.snapshots.find("big")
    folder = small.ctx.layout.snapshot(taken.id)
    assert taken.state is SnapshotState.READY
    assert "disk-full" in (folder / seal.LOG).read_text()
    assert not list(folder.glob("memory*"))
    with pytest.raises(StoreError) as unsealed:
        small.wait(seal.wait(small.ctx, taken, seal.start(small.ctx, taken)))
    assert "disk-full" in unsealed.value.seen
    check_clear(unsealed.value, source_state="running")
    small.remove(small.clone(taken))
    disk.free()
    sealed = small.wait(seal.wait(small.ctx, taken, seal.start(small.ctx, taken)))
    assert sealed.state is SnapshotState.SEALED


@pytest.mark.parametrize("point", ["", "clone.checked", "clone.made", "clone.restored", "clone.verified"])
def test_full_while_a_clone_starts(small: Lab, disk: Room, residents: Sources, point: str) -> None:
    """The clone fails, clearly, and goes at once; or it is ready."""
    taken = small.snapshot(residents.any(), method=CaptureMethod.BACKGROUND)
    small.snapshots_sealed()
    if not point:
        disk.fill()
    stops = [point] if point else []
    with Operation(
        small, "clone", stops=stops, deadlines=QUICK, snapshot=taken.id, names=["late"]
    ) as operation:
        if point:
            operation.reach(point)
            disk.fill()
            operation.go_on(point)
        (answer,) = operation.result()["ok"]
    # Either we have no room, or the guest, which renews itself on its disk and then stands still.
    assert answer["error"] is not None
    assert answer["error"]["error"] in ("disk-full", "agent-silent"), answer
    check_clear(answer["error"])
    assert "make room" in answer["error"]["next_step"], answer
    assert find_faults(small) == []
    assert [machine.name for machine in small.ctx.machines.list()] == [residents.any().name]
    disk.free()
    go_on(small, residents.any())
    residents.check()
    small.remove(small.clone(taken))


def test_a_machine_is_not_made_on_a_full_disk(small: Lab, disk: Room, residents: Sources) -> None:
    before = residents.any()
    disk.fill()
    with pytest.raises(StoreError) as full:
        small.boot("other", "light")
    assert full.value.code == "disk-full"
    assert find_faults(small) == []
    assert [machine.id for machine in small.ctx.machines.list()] == [before.id]


def test_a_guest_that_writes_where_there_is_no_room(small: Lab, disk: Room, residents: Sources) -> None:
    """It stands still in the middle of its write; with room, `liveclone start` lets it go on, and nothing is lost."""
    source = residents.any()
    digest = small.shell(source, "head -c 30000000 /dev/urandom > /run/blob; sha256sum < /run/blob")

    async def write() -> None:
        handle = await small.ctx.driver.open(source, small.ctx.layout.machine(source.id))
        try:
            async with handle.session.watch("STOP") as stop:  # type: ignore[attr-defined]
                disk.fill()
                await asyncio.to_thread(small.console, source, "(cp /run/blob /var/lib/blob; sync) & :")
                await stop.until(lambda event: True, "standing still", 60.0)
        finally:
            await handle.close()

    small.wait(write())
    with pytest.raises(Refused) as refused:
        small.snapshot(source, method=CaptureMethod.BACKGROUND)
    assert refused.value.code == "not-running"
    assert refused.value.next_step == f"liveclone start {source.name}"
    disk.free()
    go_on(small, source)
    residents.check()
    small.shell(source, "sync; echo 3 > /proc/sys/vm/drop_caches; cmp /run/blob /var/lib/blob; rm /run/blob")
    assert small.shell(source, "sha256sum < /var/lib/blob") == digest
