"""Ctrl-C around a handover's point of no return: undone before it; behind it carried out, and the snapshot removed."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fault.conftest import Sources
from tests.machines import Lab, Operation

UNDONE = [f"handover.{step}" for step in ("successor", "pausing", "paused", "saved")]
# Nothing is awaited between `loaded` and the point of no return.
CARRIED_OUT = [
    *(f"handover.{step}" for step in ("loaded", "committing", "resumed", "retired")),
    *(f"snapshot.{step}" for step in ("committed", "reconnected", "done")),
]


@pytest.mark.parametrize("point", [*UNDONE, *CARRIED_OUT])
def test_ctrl_c(lab: Lab, sources: Sources, point: str) -> None:
    source = sources.take()
    with Operation(lab, "snapshot", stops=[point], machine=source.id, method="handover") as operation:
        operation.reach(point)
        os.kill(operation.pid, signal.SIGINT)
        operation.go_on(point)
        assert operation.result() == {"interrupted": True}
    # The command itself has left all in order: there is nothing to repair.
    assert lab.find_faults() == []
    assert lab.repair() == []
    sources.check()
    assert (lab.reload(source).process == source.process) == (point in UNDONE)
    assert lab.ctx.snapshots.list() == []
