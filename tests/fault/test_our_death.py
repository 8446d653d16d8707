"""Our process is killed at every named step of a real machine's snapshot and of its clones; `repair` settles it.

The order matters: up to the point of no return the source can hand over again, so one boot serves all those cases.
"""

from __future__ import annotations

import pytest

from liveclone.model.machine import MemorySource
from tests.fault.conftest import Sources
from tests.machines import Lab, Operation, find_points

SNAPSHOT = find_points("snapshot")
HANDOVER = find_points("handover")
AFTER = {
    "handover.resumed",
    "handover.retired",
    "snapshot.committed",
    "snapshot.reconnected",
    "snapshot.done",
}


@pytest.mark.parametrize("point", [p for p in (*SNAPSHOT, *HANDOVER) if p not in AFTER])
def test_before_the_point_of_no_return_nothing_has_happened(lab: Lab, sources: Sources, point: str) -> None:
    source = sources.take()
    with Operation(lab, "snapshot", kill_at=point, machine=source.id, method="handover") as operation:
        assert operation.result() == {"killed": True}
    assert lab.repair() == [source.name]
    sources.check()
    after = lab.reload(source)
    assert after.process == source.process
    assert after.disk == source.disk
    assert after.memory is not None
    assert after.memory.source is MemorySource.SHARED_HOT
    assert lab.ctx.snapshots.list() == []


@pytest.mark.parametrize("point", [p for p in (*HANDOVER, *SNAPSHOT) if p in AFTER])
def test_after_it_the_source_goes_on_in_its_new_process(lab: Lab, sources: Sources, point: str) -> None:
    source = sources.take()
    with Operation(lab, "snapshot", kill_at=point, machine=source.id, method="handover") as operation:
        assert operation.result() == {"killed": True}
    lab.repair()
    sources.check()
    after = lab.reload(source)
    assert after.process != source.process
    assert after.disk != source.disk
    assert len(lab.ctx.snapshots.list()) == (point == "snapshot.done")


@pytest.mark.parametrize("method", ["background", "stream"])
@pytest.mark.parametrize(
    "step", ["pausing", "paused", "frozen", "resumed", "streamed", "committed", "reconnected"]
)
def test_a_later_snapshot(lab: Lab, sources: Sources, method: str, step: str) -> None:
    points = {*find_points(method), *SNAPSHOT}
    point = next((p for p in (f"{method}.{step}", f"snapshot.{step}") if p in points), "")
    if not point:
        pytest.skip(f"{method} has no such step")
    source = sources.any()
    with Operation(lab, "snapshot", kill_at=point, machine=source.id, method=method) as operation:
        assert operation.result() == {"killed": True}
    lab.repair()
    sources.check()
    assert lab.ctx.snapshots.list() == []


@pytest.fixture(scope="module")
def family(lab: Lab, sources: Sources) -> str:
    """Return the name of a source whose snapshots are cloned from."""
    return sources.any().name


@pytest.mark.parametrize("point", find_points("clone"))
def test_a_clone(lab: Lab, sources: Sources, family: str, point: str) -> None:
    taken = lab.snapshot(sources.any())
    with Operation(lab, "clone", kill_at=point, snapshot=taken.id, names=["doomed"]) as operation:
        assert operation.result() == {"killed": True}
    lab.repair()
    sources.check()
    left = [machine.name for machine in lab.ctx.machines.list() if machine.name == "doomed"]
    assert left == (["doomed"] if point == "clone.ready" else [])
    if point == "clone.ready":
        lab.remove(*[machine for machine in lab.ctx.machines.list() if machine.name == "doomed"])
