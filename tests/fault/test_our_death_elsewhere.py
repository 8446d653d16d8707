"""Our process is killed while it makes or starts a machine, and the one that seals a snapshot, at every named step."""

from __future__ import annotations

from typing import Any

import blake3
import pytest

from liveclone.engine import seal
from liveclone.host import process
from liveclone.model.snapshot import CaptureMethod, SnapshotState
from tests.fault.conftest import Sources
from tests.machines import LIGHT_RAM, Lab, Operation, find_points


@pytest.mark.parametrize("point", find_points("seal"))
def test_sealing(lab: Lab, sources: Sources, point: str) -> None:
    """Nothing is called sealed that is not; clones start meanwhile, and the next attempt finishes it."""
    arguments: dict[str, Any] = {"machine": sources.any().id, "name": "unsealed", "method": "background"}
    with Operation(lab, "snapshot", kill_at=point, **arguments) as operation:
        assert "ok" in operation.result()
        lab.snapshots_sealed()  # or rather, whoever was to seal it has ended
        assert point in operation.read()
    taken = lab.ctx.snapshots.find("unsealed")
    assert (taken.state is SnapshotState.SEALED) == (point == "seal.done")
    lab.remove(lab.clone(taken))
    sealed = lab.wait(seal.wait(lab.ctx, taken, seal.start(lab.ctx, taken)))
    memory = lab.ctx.layout.snapshot(taken.id) / "memory"
    assert blake3.blake3(memory.read_bytes()).hexdigest() == sealed.memory.digest
    assert not memory.with_suffix(".part").exists()
    sources.check()


@pytest.mark.parametrize("point", find_points("run"))
def test_making_a_machine(lab: Lab, point: str) -> None:
    before = [machine.id for machine in lab.ctx.machines.list()]
    with Operation(lab, "run", kill_at=point, image="light", name="doomed", ram_bytes=LIGHT_RAM) as operation:
        assert operation.result() == {"killed": True}
    lab.repair()
    assert lab.find_faults() == []
    assert [machine.id for machine in lab.ctx.machines.list()] == before


@pytest.mark.parametrize("point", [*find_points("start"), "run.answered"])
def test_starting_a_machine(lab: Lab, sources: Sources, point: str) -> None:
    """It is a stopped machine again, and its disk is as the guest left it."""
    source = sources.any()
    lab.shell(source, f"echo {point} > /var/lib/mark; sync")
    lab.snapshot(source, method=CaptureMethod.BACKGROUND)  # its disk is a chain
    lab.stop(source, force=True)
    with Operation(lab, "start", kill_at=point, machine=source.id) as operation:
        assert operation.result() == {"killed": True}
    assert lab.repair() == [source.name]
    assert lab.find_faults() == []
    stopped = lab.reload(source)
    assert not process.is_alive(stopped.process)
    if point == "run.answered":
        started = lab.start(stopped)
        assert lab.shell(started, "cat /var/lib/mark") == point
    lab.remove(lab.reload(source))
