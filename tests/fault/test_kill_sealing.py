"""The sealing process is killed at every point: nothing is called sealed that is not, and the next attempt finishes it."""

from __future__ import annotations

import blake3
import pytest

from liveclone.engine import seal
from liveclone.model.snapshot import CaptureMethod, SnapshotState
from tests.fault.conftest import Sources
from tests.machines import Lab, Operation, find_points


@pytest.mark.parametrize("point", find_points("seal"))
def test_killed_while_sealing(lab: Lab, sources: Sources, point: str) -> None:
    state = sources.ready(CaptureMethod.BACKGROUND, point)
    with Operation(lab, "snapshot", kill_at=point, machine=state.machine.id, name="unsealed") as taking:
        assert "ok" in taking.result()
        lab.snapshots_sealed()  # or rather, their sealing has ended
    taken = lab.ctx.snapshots.find("unsealed")
    assert (taken.state is SnapshotState.SEALED) == (point == "seal.done")
    # Until then it is as good as any other: clones start from the hot image.
    lab.remove(lab.clone(taken))
    sealed = lab.wait(seal.wait(lab.ctx, taken, seal.start(lab.ctx, taken)))
    assert sealed.state is SnapshotState.SEALED
    memory = lab.ctx.layout.snapshot(taken.id) / "memory"
    assert blake3.blake3(memory.read_bytes()).hexdigest() == sealed.memory.digest
    assert sealed.hot is not None
    assert lab.find_faults() == []
    lab.remove_snapshot(sealed)
