"""A command is cancelled, as by Ctrl-C, at every named point there is: it undoes what it did, or finishes, all by itself."""

from __future__ import annotations

import asyncio
import threading

import pytest

from liveclone import trace

from .cases import OPERATIONS, Case, points_of
from .cases import case as case
from .cases import cases as cases


@pytest.mark.parametrize(
    ("operation", "point"),
    [pytest.param(o, p, id=f"{o}-{p}") for o in OPERATIONS if o != "seal" for p in points_of(o)],
)
async def test_a_command_that_was_cancelled_leaves_all_in_order(
    case: Case, operation: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = case.world
    await case.prepare()
    if case.takes_snapshot:
        await world.write("web", "/srv/token", point)
    work = asyncio.create_task(case.in_process())
    passed: list[str] = []
    loop, ours = asyncio.get_running_loop(), threading.current_thread()

    def at(here: str) -> None:
        passed.append(here)
        if here == point:
            loop.call_soon_threadsafe(
                work.cancel
            ) if threading.current_thread() is not ours else work.cancel()

    monkeypatch.setattr(trace, "at", at)
    (outcome,) = await asyncio.gather(work, return_exceptions=True)
    monkeypatch.undo()
    assert point in passed
    assert await world.find_faults() == []
    names = {one.name for one in world.ctx.machines.list()} | {one.name for one in world.ctx.snapshots.list()}
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, asyncio.CancelledError), outcome
        assert "new" not in names
        assert operation != "export" or not case.file.exists()
    elif operation not in ("start", "export", "fill"):
        assert "new" in names
    if case.takes_snapshot:
        await world.check_runs("web")
        assert await world.read("web", "/srv/token") == point
    await case.clean()
    case.is_good = True
