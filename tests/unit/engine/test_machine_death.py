"""A machine's process is killed at every named point of a snapshot: what is left is as the table says, and starts again."""

from __future__ import annotations

import asyncio
import signal

import pytest

from liveclone import trace
from liveclone.engine import run
from liveclone.errors import LivecloneError
from liveclone.host import process
from liveclone.model.machine import ProcessRef
from tests.fault.deaths import HANDOVER, IN_PLACE, Death, Outcome, Whose

from .cases import Case
from .cases import case as case
from .cases import cases as cases

STOPS = {
    Outcome.STOPPED: (False,),
    Outcome.STANDS: (True,),
    Outcome.STOPPED_OR_STANDS: (False, True),
    Outcome.DONE: (True,),
}


@pytest.mark.parametrize(
    ("operation", "death"),
    [pytest.param(d.method, d, id=f"{d.method}-{d.id}") for d in [*HANDOVER, *IN_PLACE]],
)
async def test_what_is_left_starts_again(
    case: Case, operation: str, death: Death, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = case.world
    await case.prepare()
    killed: list[ProcessRef] = []

    def at(here: str) -> None:
        if here != death.point:
            return
        machine = world.machine("web")
        entry = world.ctx.journal(machine.id).read()
        victim = machine.process
        if death.whose is Whose.SUCCESSOR:
            assert entry is not None
            victim = ProcessRef(**entry.facts["successor"])
        assert victim is not None
        killed.append(victim)
        process.send(victim, signal.SIGKILL)
        assert process.wait_gone(victim, 10.0)

    monkeypatch.setattr(trace, "at", at)
    (ended,) = await asyncio.gather(case.in_process(), return_exceptions=True)
    monkeypatch.undo()
    assert killed
    taken = any(snapshot.name == "new" for snapshot in world.ctx.snapshots.list())
    machine = world.machine("web")
    assert process.is_alive(machine.process) == (death.outcome not in STOPS)
    if death.outcome in STOPS:
        assert taken in STOPS[death.outcome]
    if death.outcome in (Outcome.DONE, Outcome.MOVES_ON):
        assert not isinstance(ended, BaseException)
    else:
        assert isinstance(ended, LivecloneError), ended
        stopped = death.outcome in STOPS
        assert ended.source_state.startswith("stopped" if stopped else "running"), ended.fields()
        assert ended.next_step.startswith("liveclone start web") or not stopped
        assert ("the snapshot new can be used" in ended.next_step) == (taken and stopped)
        assert await world.find_faults() == []
    await run.start(world.ctx, "web")
    await world.check_runs("web")
    assert await world.find_faults() == []
    await case.clean()
    case.is_good = True
