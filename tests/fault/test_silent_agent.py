"""The agent is stopped (SIGSTOP) before, during and after a snapshot, and in clones: an error that names it, never a hang.

The source runs on with its NIC. What only its agent can do, to set the address, is done by `repair` when the agent goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from liveclone.engine import agent, run, scan, wiring
from liveclone.errors import TimedOut
from liveclone.model.machine import Machine
from liveclone.model.snapshot import CaptureMethod
from tests.fault.conftest import Sources
from tests.machines import Lab, Operation, check_clear

QUICK = {
    "identify.IDENTIFY_DEADLINE_S": 1.0,
    "wiring.CONFIGURE_DEADLINE_S": 1.0,
    "agent._SLACK_S": 0.5,
}


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Do not wait long for an agent that will not answer; to be left before one is asked that does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "DEADLINE_S", 1.0)
        patch.setattr(wiring, "CONFIGURE_DEADLINE_S", 1.0)
        patch.setattr(agent, "_SLACK_S", 0.5)
        yield


def send(lab: Lab, machine: Machine, signal: str) -> None:
    """Send a signal to the agent's processes in the guest, by the shell on its console."""
    seen = lab.console(
        machine,
        "for p in /proc/[0-9]*; do if grep -qs agent.pyz $p/cmdline; "
        f"then kill -{signal} ${{p#/proc/}} && echo sent''-{signal}; fi; done",
    )
    assert f"sent-{signal}" in seen, seen


def check_silent(error: dict[str, str], name: str, source_state: str) -> None:
    assert (error["error"], error["kind"]) == ("agent-silent", "TimedOut"), error
    assert name in error["message"]
    check_clear(error, source_state=source_state)


def check_works(lab: Lab, sources: Sources) -> None:
    sources.check()
    taken = lab.snapshot(sources.any())
    sources.check()
    lab.remove(lab.clone(taken))


def test_before(lab: Lab, sources: Sources) -> None:
    """Nothing was touched: it keeps its NIC and its address, and its connections."""
    source = sources.any()
    send(lab, source, "STOP")
    with impatient(), pytest.raises(TimedOut) as silent:
        lab.snapshot(source)
    check_silent(silent.value.fields(), source.name, "running")
    assert lab.find_faults() == []
    sources.check()
    assert lab.reload(source).process == source.process
    assert lab.ctx.snapshots.list() == []
    send(lab, source, "CONT")
    check_works(lab, sources)


@pytest.mark.parametrize(
    ("method", "mended_by"),
    [(CaptureMethod.BACKGROUND, "the next snapshot"), (CaptureMethod.HANDOVER, "repair")],
    ids=["background", "handover"],
)
def test_during(lab: Lab, sources: Sources, method: CaptureMethod, mended_by: str) -> None:
    """The snapshot stands, and holds an agent that is stopped: its clones fail one by one, and leave nothing."""
    source = sources.take() if method is CaptureMethod.HANDOVER else sources.any()
    arguments: dict[str, Any] = {"machine": source.id, "name": "mute", "method": method.value}
    point = "snapshot.prepared"
    with Operation(lab, "snapshot", stops=[point], deadlines=QUICK, **arguments) as operation:
        operation.reach(point)
        send(lab, source, "STOP")
        operation.go_on(point)
        error = operation.result()["error"]
    check_silent(error, source.name, "running")
    assert f"liveclone repair {source.name}" in error["next_step"]
    assert lab.nics(source) == ["nic0"]
    if mended_by == "repair":
        taken = lab.ctx.snapshots.find("mute")
        for answer in clones_of(lab, "mute"):
            check_silent(answer["error"], answer["name"], "not touched")
        assert [machine.name for machine in lab.ctx.machines.list()] == [source.name]
        send(lab, source, "CONT")
        assert lab.repair() == [source.name]
        sources.check()
        lab.snapshots_sealed()
        lab.remove_snapshot(taken)
    else:
        send(lab, source, "CONT")
    check_works(lab, sources)


def clones_of(lab: Lab, name: str) -> list[dict[str, Any]]:
    with Operation(lab, "clone", deadlines=QUICK, snapshot=name, count=2) as operation:
        answers: list[dict[str, Any]] = operation.result()["ok"]
    return answers


def test_after(lab: Lab, sources: Sources) -> None:
    """When the memory has been captured: the clones' agents run, and `start` gives the source its address."""
    source = sources.any()
    arguments: dict[str, Any] = {"machine": source.id, "name": "good", "method": "background"}
    with Operation(lab, "snapshot", stops=["snapshot.committed"], deadlines=QUICK, **arguments) as operation:
        operation.reach("snapshot.committed")
        send(lab, source, "STOP")
        operation.go_on("snapshot.committed")
        check_silent(operation.result()["error"], source.name, "running")
    assert lab.nics(source) == ["nic0"]
    # While it is silent nothing can be mended, and nothing hangs.
    with impatient():
        lab.repair()
    taken = lab.ctx.snapshots.find("good")
    clone = lab.clone(taken)
    assert lab.http(clone)["token"] == sources.token
    lab.remove(clone)
    send(lab, source, "CONT")
    lab.wait(run.start(lab.ctx, source.id))
    check_works(lab, sources)
