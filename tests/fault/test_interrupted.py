"""Ctrl-C around a handover's point of no return: undone before it, and behind it the source goes on in its new process."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fault.conftest import Sources
from tests.machines import Lab, Operation

UNDONE = [f"handover.{step}" for step in ("successor", "pausing", "paused", "saved", "loaded", "committing")]


@pytest.mark.parametrize("point", [*UNDONE, "handover.resumed", "handover.retired"])
def test_ctrl_c(lab: Lab, sources: Sources, point: str) -> None:
    source = sources.take()
    with Operation(lab, "snapshot", stops=[point], machine=source.id, method="handover") as operation:
        operation.reach(point)
        os.kill(operation.pid, signal.SIGINT)
        operation.go_on(point)
        assert operation.result() == {"interrupted": True}
    if point in UNDONE:  # the command itself has done it
        assert lab.find_faults() == []
    lab.repair()
    sources.check()
    assert (lab.reload(source).process == source.process) == (point in UNDONE)
    assert lab.ctx.snapshots.list() == []
