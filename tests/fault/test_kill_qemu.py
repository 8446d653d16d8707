"""A QEMU is killed at every named point: the source's, the one it hands over to, a clone's.

Whether the machine can live depends on which of its processes died when. Either it goes on as if nothing had been, or the
error and `show` say that it has stopped, and `liveclone start` boots it from an undamaged disk.
"""

from __future__ import annotations

import subprocess

import pytest

from liveclone.host import process
from liveclone.model.machine import Machine, ProcessRef
from liveclone.model.snapshot import CaptureMethod
from tests.fault.conftest import Sources, State
from tests.fault.test_kill_commands import SNAPSHOT, find, remove_snapshot
from tests.machines import Lab, Operation, check_clear, find_points, kill

IN_PLACE = [(method, point) for method, point in SNAPSHOT if method is not CaptureMethod.HANDOVER]
HANDOVER = [
    (victim, point)
    for method, point in SNAPSHOT
    for victim in ("old", "successor")
    if method is CaptureMethod.HANDOVER
    # There is none yet, or no longer.
    if (victim, point) not in (("successor", "snapshot.begun"), ("successor", "snapshot.prepared"))
    if victim == "successor"
    or point not in ("handover.retired", "snapshot.committed", "snapshot.reconnected")
    if point != "snapshot.done"
]


def find_victim(lab: Lab, state: State, victim: str) -> ProcessRef:
    if victim == "old":
        assert state.machine.process is not None
        return state.machine.process
    entry = lab.ctx.journal(state.machine.id).read()
    assert entry is not None
    return ProcessRef(**entry.facts["successor"])


def runs(lab: Lab, machine: Machine) -> bool:
    return process.is_alive(lab.reload(machine).process)


@pytest.mark.parametrize(("victim", "point"), HANDOVER, ids=[f"{p}-{v}" for v, p in HANDOVER])
def test_killed_while_handing_over(lab: Lab, sources: Sources, victim: str, point: str) -> None:
    state = sources.ready(CaptureMethod.HANDOVER, f"{point}-{victim}")
    with Operation(lab, "snapshot", stops=[point], machine=state.machine.id, name="killed") as taking:
        taking.reach(point)
        no_return = "handover.resumed" in taking.passed
        kill(find_victim(lab, state, victim))
        taking.go_on(point)
        result = taking.result()
    assert lab.find_double_writers() == []
    lab.repair()
    assert lab.find_faults() == []
    lives = runs(lab, state.machine)
    if victim == "successor":
        assert lives != no_return
    elif no_return:
        assert lives
    assert "error" in result or lives
    if "error" in result:
        check_clear(result["error"])
        assert ("running" in result["error"]["source_state"]) == lives, result
    if lives:
        sources.check_goes_on(state)
    else:
        sources.check_starts(state)
    remove_snapshot(lab, "killed")


@pytest.mark.parametrize(("method", "point"), IN_PLACE, ids=[f"{m.value}-{p}" for m, p in IN_PLACE])
def test_killed_while_being_captured(lab: Lab, sources: Sources, method: CaptureMethod, point: str) -> None:
    """There is one process only: the machine has stopped, the error says so, and its disk is whole."""
    state = sources.ready(method, point)
    options = {"machine": state.machine.id, "name": "killed", "method": method.value}
    with Operation(lab, "snapshot", stops=[point], **options) as taking:
        taking.reach(point)
        assert state.machine.process is not None
        kill(state.machine.process)
        taking.go_on(point)
        result = taking.result()
    lab.repair()
    assert lab.find_faults() == []
    assert not runs(lab, state.machine)
    if point != "snapshot.done":
        check_clear(result["error"], source_state="stopped")
    machine = lab.stop(state.machine)
    # 3: clusters that were allocated and not used yet. Nothing points to them.
    assert subprocess.run(["qemu-img", "check", "-q", machine.disk], check=False).returncode in (0, 3)
    if point.endswith(".frozen"):
        sources.check_starts(state)
    for taken in lab.ctx.snapshots.list():
        if taken.name == "killed":
            lab.remove(lab.clone(taken))
    remove_snapshot(lab, "killed")


@pytest.mark.parametrize("point", find_points("clone"))
def test_killed_while_becoming_a_clone(lab: Lab, sources: Sources, point: str) -> None:
    """That clone fails and goes; its sibling is ready."""
    base = sources.snapshot(CaptureMethod.BACKGROUND)
    names = ["one", "other"]
    with Operation(lab, "clone", stops=[point], snapshot=base.id, count=2, names=names) as cloning:
        cloning.reach(point)
        victims = [(pid, name) for name in names for pid, _ in process.find(f"guest={name},")]
        for pid, _ in victims[:1]:
            kill(process.ref(pid))
        cloning.go_on(point)
        results = {result["name"]: result["error"] for result in cloning.result()["ok"]}
    # Nothing to repair: the command itself has cleaned up.
    assert lab.find_faults() == []
    killed = [name for _, name in victims[:1]]
    for name in names:
        machine = find(lab, name)
        if name in killed and point != "clone.ready":
            check_clear(results[name])
            assert machine is None
        elif name not in killed:
            assert results[name] is None
            assert machine is not None
            assert lab.http(machine, "/identity")["hostname"] == name
        if machine is not None:
            lab.remove(machine)
