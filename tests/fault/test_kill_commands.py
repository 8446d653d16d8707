"""Our process is killed at every named point of taking a snapshot, starting a clone, and making and starting a machine.

The points are read from the sources, so that a new one is covered when it is written; a clean run of each operation
shows that it passes exactly these.
"""

from __future__ import annotations

import pytest

from liveclone.errors import NotFound
from liveclone.host import process
from liveclone.model.machine import Machine
from liveclone.model.snapshot import CaptureMethod
from tests.fault.conftest import Sources
from tests.machines import LIGHT_RAM, Lab, Operation, find_points

SNAPSHOT = [(method, point) for method in CaptureMethod for point in find_points("snapshot", method.value)]


def find(lab: Lab, name: str) -> Machine | None:
    try:
        return lab.ctx.machines.find(name)
    except NotFound:
        return None


def remove_snapshot(lab: Lab, name: str) -> None:
    for found in lab.ctx.snapshots.list():
        if found.name == name:
            lab.snapshots_sealed()
            lab.remove_snapshot(found)


@pytest.mark.parametrize("method", CaptureMethod, ids=lambda method: method.value)
def test_a_clean_snapshot_passes_every_point(lab: Lab, sources: Sources, method: CaptureMethod) -> None:
    state = sources.ready(method, "clean")
    with Operation(lab, "snapshot", machine=state.machine.id, name="clean", method=method.value) as taking:
        assert "ok" in taking.result()
        passed = [point for point in taking.passed if not point.startswith("seal.")]
    assert sorted(passed) == sorted(point for m, point in SNAPSHOT if m is method)
    sources.check_goes_on(state)
    remove_snapshot(lab, "clean")


@pytest.mark.parametrize(("method", "point"), SNAPSHOT, ids=[f"{m.value}-{p}" for m, p in SNAPSHOT])
def test_killed_while_taking_a_snapshot(
    lab: Lab, sources: Sources, method: CaptureMethod, point: str
) -> None:
    """`liveclone repair` finishes it or undoes it: the source runs on in one process, with all that it had."""
    state = sources.ready(method, point)
    options = {"machine": state.machine.id, "name": "killed", "method": method.value}
    with Operation(lab, "snapshot", kill_at=point, **options) as taking:
        assert taking.result() == {"killed": True}
        assert taking.passed[-1] == point
    assert lab.find_double_writers() == []
    lab.repair()
    assert lab.find_faults() == []
    sources.check_goes_on(state)
    complete = [found for found in lab.ctx.snapshots.list() if found.name == "killed"]
    assert bool(complete) == (point == "snapshot.done")
    for found in complete:
        clone = lab.clone(found)
        assert lab.shell(clone, "cat /var/lib/mark") == point
        lab.remove(clone)
    remove_snapshot(lab, "killed")


@pytest.mark.parametrize("point", find_points("clone"))
def test_killed_while_starting_clones(lab: Lab, sources: Sources, point: str) -> None:
    """What was not ready is removed, what was ready stays, the snapshot is as good as ever."""
    base = sources.snapshot(CaptureMethod.BACKGROUND)
    names = ["killed-1", "killed-2"]
    with Operation(lab, "clone", kill_at=point, snapshot=base.id, names=names, count=2) as cloning:
        assert cloning.result() == {"killed": True}
    assert lab.find_double_writers() == []
    lab.repair()
    assert lab.find_faults() == []
    for name in names:
        machine = find(lab, name)
        if machine is not None:
            assert point == "clone.ready"
            assert lab.http(machine, "/identity")["hostname"] == name
            lab.remove(machine)
    lab.remove(lab.clone(base, names=["killed-1"]))


def test_clean_clones_pass_every_point(lab: Lab, sources: Sources) -> None:
    base = sources.snapshot(CaptureMethod.BACKGROUND)
    with Operation(lab, "clone", snapshot=base.id, names=["clean"]) as cloning:
        assert cloning.result()["ok"] == [{"name": "clean", "error": None}]
        assert sorted(cloning.passed) == sorted(find_points("clone"))
    lab.remove(lab.ctx.machines.find("clean"))


@pytest.mark.parametrize("point", find_points("run"))
def test_killed_while_making_a_machine(lab: Lab, point: str) -> None:
    with Operation(lab, "run", kill_at=point, image="light", name="killed", ram_bytes=LIGHT_RAM) as making:
        assert making.result() == {"killed": True}
    lab.repair()
    assert lab.find_faults() == []
    assert find(lab, "killed") is None


@pytest.mark.parametrize("point", find_points("start"))
def test_killed_while_starting_a_machine(lab: Lab, sources: Sources, point: str) -> None:
    """It is a stopped machine again."""
    state = sources.ready(CaptureMethod.HANDOVER, point)
    lab.stop(state.machine, force=True)
    with Operation(lab, "start", kill_at=point, machine=state.machine.id) as starting:
        assert starting.result() == {"killed": True}
    lab.repair()
    assert lab.find_faults() == []
    assert not process.is_alive(lab.reload(state.machine).process)
    sources.check_starts(state)
