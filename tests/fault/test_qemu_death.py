"""QEMU is killed under a snapshot or a clone: the error is clear, and what can go on goes on."""

from __future__ import annotations

import os
import signal

import pytest

from liveclone.host import process
from tests.fault.conftest import Sources
from tests.machines import Lab, Operation


def successor_of(lab: Lab, known: int | None) -> int:
    """Return the pid of the QEMU that is not `known`."""
    (found,) = [pid for pid in lab.qemus() if pid != known]
    return found


@pytest.mark.parametrize(
    "point", ["handover.successor", "handover.paused", "handover.saved", "handover.loaded"]
)
def test_without_its_successor_the_source_goes_on(lab: Lab, sources: Sources, point: str) -> None:
    source = sources.take()
    assert source.process is not None
    with Operation(lab, "snapshot", stops=[point], machine=source.id) as operation:
        operation.reach(point)
        os.kill(successor_of(lab, source.process.pid), signal.SIGKILL)
        operation.go_on(point)
        error = operation.result()["error"]
    assert "running" in error["source_state"], error
    assert error["next_step"], error
    lab.repair()
    sources.check()
    assert lab.reload(source).process == source.process
    assert lab.ctx.snapshots.list() == []


@pytest.mark.parametrize("point", ["snapshot.prepared", "handover.pausing"])
def test_a_source_that_dies_is_said_to_be_stopped_and_starts_again(
    lab: Lab, sources: Sources, point: str
) -> None:
    source = sources.take()
    assert source.process is not None
    with Operation(lab, "snapshot", stops=[point], machine=source.id) as operation:
        operation.reach(point)
        os.kill(source.process.pid, signal.SIGKILL)
        operation.go_on(point)
        assert "error" in operation.result()
    lab.repair()
    assert lab.ctx.snapshots.list() == []
    stopped = lab.reload(source)
    assert not process.is_alive(stopped.process)
    lab.remove(stopped)


@pytest.mark.parametrize("point", ["clone.restored", "clone.resumed", "clone.identified", "clone.verified"])
def test_a_clone_that_dies_leaves_nothing(lab: Lab, sources: Sources, point: str) -> None:
    source = sources.any()
    taken = lab.snapshot(source)
    source = lab.reload(source)
    assert source.process is not None
    with Operation(lab, "clone", stops=[point], snapshot=taken.id, names=["doomed"]) as operation:
        operation.reach(point)
        os.kill(successor_of(lab, source.process.pid), signal.SIGKILL)
        operation.go_on(point)
        (answer,) = operation.result()["ok"]
    assert answer["error"]["next_step"], answer
    assert [machine.name for machine in lab.ctx.machines.list()] == [source.name]
    sources.check()
