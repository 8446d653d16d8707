"""A command is killed (SIGKILL) at every named point there is; whoever comes next finds all in order, or puts it in order.

A clean run of each operation shows that it really passes its points. After each kill: `repair` in another process, then
nothing is left over, the source runs, and the machine can be captured. That the operation itself works again is seen by the
next test, which has the same home.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from liveclone.engine import seal
from liveclone.model.snapshot import CaptureMethod, SnapshotState

from .cases import OPERATIONS, SOURCE, Case, points_of
from .cases import case as case
from .cases import cases as cases

SIGKILL = 9


def test_every_point_belongs_to_an_operation() -> None:
    text = "".join(file.read_text() for file in SOURCE.rglob("*.py") if file.name != "trace.py")
    words = {point.partition(".")[0] for point in re.findall(r'trace\.at\("([a-z.-]+)"\)', text)}
    assert words == {word for words in OPERATIONS.values() for word in words}


@pytest.mark.parametrize(
    ("operation", "point"),
    [pytest.param(o, p, id=f"{o}-{p}") for o in OPERATIONS for p in points_of(o)],
)
async def test_a_command_that_was_killed_is_settled(case: Case, operation: str, point: str) -> None:
    world = case.world
    await case.prepare()
    if case.takes_snapshot:
        await world.write("web", "/srv/token", point)
    assert case.in_child(LIVECLONE_FAULT=f"{point}=kill").signal == SIGKILL
    await world.repair()
    if operation == "seal":
        sealed = await asyncio.to_thread(seal.seal, world.ctx, world.ctx.snapshots.find("new").id)
        assert sealed.state is SnapshotState.SEALED
    assert await world.find_faults() == []
    if operation == "export":
        assert list(case.file.parent.iterdir()) == ([case.file] if point == "export.written" else [])
    if case.takes_snapshot:
        await world.check_runs("web")
        assert await world.read("web", "/srv/token") == point
        await case.clean()
        await world.snapshot("web", "new", CaptureMethod.STREAM)
        assert await world.find_faults() == []
    await case.clean()
    case.is_good = True


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_clean_run_passes_every_point(case: Case, operation: str, tmp_path: Path) -> None:
    await case.prepare()
    trace = tmp_path / "trace"
    ended = case.in_child(LIVECLONE_TRACE=str(trace))
    assert (ended.signal, ended.error) == (0, {})
    assert set(points_of(operation)) <= set(trace.read_text().split())
    assert await case.world.find_faults() == []
    await case.clean()
    case.is_good = True


@pytest.mark.parametrize("operation", ["handover"])
async def test_the_next_command_settles_it_without_being_asked(case: Case) -> None:
    await case.prepare()
    assert case.in_child(LIVECLONE_FAULT="handover.saved=kill").signal == SIGKILL
    taken = await case.world.snapshot("web", "new")
    assert taken.capture.method is CaptureMethod.HANDOVER
    assert await case.world.find_faults() == []
    await case.clean()
    case.is_good = True
