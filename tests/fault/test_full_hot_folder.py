"""The tmpfs that memory images are on runs full: before a capture, at each step of it, under clones and under a guest.

It can be dangerous: a page of guest RAM that was never touched needs room there when it is, and without room the kernel
kills QEMU (SIGBUS). So what could fill it is refused beforehand, and what fills it meanwhile meets pages that are there.

The order matters: one source serves until it has handed over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from liveclone.engine import views
from liveclone.errors import Refused, StoreError
from liveclone.host import memory, process
from liveclone.model.image import Image
from liveclone.model.machine import Machine, MachineState, MemorySource
from liveclone.model.snapshot import CaptureMethod
from liveclone.units import MIB
from tests.fault.conftest import Sources
from tests.fault.rooms import Room, open_tmpfs
from tests.machines import LIGHT_RAM, Lab, Operation, check_clear, find_points

SIZE, NAMES = 768 * MIB, 64
# From here on the memory image is being written; `stream` has written most of it before it pauses.
POINTS = [*(point for point in find_points("background") if point < "background.r"), "stream.pausing"]


@pytest.fixture(scope="module")
def hot() -> Iterator[Room]:
    folder = Path(os.environ["LIVECLONE_HOT"]).with_name("small")
    with open_tmpfs(folder, SIZE, NAMES) as room:
        yield room


@pytest.fixture(scope="module")
def small(images: dict[str, Image], hot: Room) -> Iterator[Lab]:
    home = Path(os.environ["LIVECLONE_HOME"]).with_name("small")
    with ExitStack() as undo:
        lab = Lab(home, hot.folder / "home", images)
        undo.callback(shutil.rmtree, home)
        undo.callback(lab.close)
        undo.callback(hot.free)
        yield lab


@pytest.fixture(scope="module")
def residents(small: Lab) -> Sources:
    return Sources(small)


@pytest.fixture(autouse=True)
def _in_order_too(small: Lab, hot: Room) -> Iterator[None]:
    """As for the other lab (conftest); and the file system is given back."""
    yield
    hot.free()
    small.snapshots_sealed()
    faults = small.find_faults()
    for taken in small.ctx.snapshots.list():
        small.remove_snapshot(taken)
    faults += small.find_faults()
    assert not faults, "\n".join(faults)


def touch_all(machine: Machine) -> None:
    """Make every page of a guest's RAM present, so that the guest does not die of the room that we take."""
    assert machine.process is not None and machine.memory is not None
    start, end = memory.find_mapping(machine.process.pid, Path(machine.memory.path))
    memory.populate(machine.process.pid, start, end)


def check_works(small: Lab, residents: Sources) -> None:
    """Fail unless the source runs, with all it had, and can be captured and cloned now that there is room."""
    residents.check()
    taken = small.snapshot(residents.any(), method=CaptureMethod.BACKGROUND)
    clone = small.clone(taken)
    assert small.http(clone)["token"] == residents.token
    small.remove(clone)


def test_too_full_for_the_holes_of_its_memory(small: Lab, hot: Room, residents: Sources) -> None:
    """A capture reads every page, and one that nobody had touched takes room then."""
    source = residents.take()
    assert source.memory is not None
    assert LIGHT_RAM - Path(source.memory.path).stat().st_blocks * 512 > 20 * MIB
    hot.fill(leave_bytes=LIGHT_RAM + 10 * MIB)
    with pytest.raises(Refused) as refused:
        small.snapshot(source, method=CaptureMethod.BACKGROUND)
    assert refused.value.code == "hot-full"
    residents.check()
    hot.free()
    check_works(small, residents)


def test_a_handover_needs_a_name(small: Lab, hot: Room, residents: Sources) -> None:
    source = residents.take()
    hot.fill_names()
    with pytest.raises(StoreError) as full:
        small.snapshot(source, method=CaptureMethod.HANDOVER)
    assert full.value.code == "disk-full"
    check_clear(full.value, source_state="running")
    assert small.find_faults() == []
    after = small.reload(source)
    assert after.process == source.process
    assert after.memory is not None and after.memory.source is MemorySource.SHARED_HOT
    hot.free()
    check_works(small, residents)


@pytest.mark.parametrize("method", [CaptureMethod.BACKGROUND, CaptureMethod.STREAM])
def test_too_full_for_an_image(small: Lab, hot: Room, residents: Sources, method: CaptureMethod) -> None:
    """It is refused before anything is touched."""
    source = residents.any()
    touch_all(source)
    hot.fill(leave_bytes=LIGHT_RAM - MIB)
    with pytest.raises(Refused) as refused:
        small.snapshot(source, method=method)
    assert refused.value.code == "hot-full"
    check_clear(refused.value, source_state="not touched")
    residents.check()
    hot.free()
    check_works(small, residents)


@pytest.mark.parametrize("point", POINTS)
def test_full_while_capturing(small: Lab, hot: Room, residents: Sources, point: str) -> None:
    source = residents.any()
    method = point.partition(".")[0]
    with Operation(small, "snapshot", stops=[point], machine=source.id, method=method) as operation:
        operation.reach(point)
        hot.fill()
        operation.go_on(point)
        error = operation.result()["error"]
    assert error["error"] == "disk-full", error
    assert str(hot.folder) in error["on"], error
    check_clear(error, source_state="running")
    # Nothing to repair: the command itself has undone it, while there was no room.
    assert small.find_faults() == []
    assert small.ctx.snapshots.list() == []
    after = small.reload(source)
    assert (after.process, after.disk) == (source.process, source.disk)
    hot.free()
    check_works(small, residents)


def test_a_handover_needs_no_room(small: Lab, hot: Room, residents: Sources) -> None:
    source = residents.take()
    touch_all(source)
    hot.fill()
    taken = small.snapshot(source, method=CaptureMethod.HANDOVER)
    residents.check()
    # All pages are there: clones find them, and what they write is theirs.
    clones = small.clones(taken, 2)
    for clone in clones:
        assert (
            small.shell(clone, "head -c 20000000 /dev/urandom > /run/blob; wc -c < /run/blob") == "20000000"
        )
    small.remove(*clones)
    hot.free()
    check_works(small, residents)


def test_a_guest_that_needs_room_where_there_is_none(small: Lab, hot: Room, residents: Sources) -> None:
    """The kernel ends its QEMU. It is seen as stopped, its disk is whole, and it starts again."""
    source = residents.take()
    assert source.process is not None
    small.shell(source, "echo kept > /var/lib/kept; sync")
    hot.fill()
    small.console(source, "setsid head -c 150000000 /dev/zero > /run/blob & :")
    assert process.wait_gone(source.process, 60.0)
    summary = small.wait(views.list_machines(small.ctx))[0]
    assert summary.state is MachineState.STOPPED
    hot.free()
    started = small.start(source)
    assert small.shell(started, "cat /var/lib/kept") == "kept"
    small.remove(started)
