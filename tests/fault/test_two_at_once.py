"""Two snapshots of one source at once: the second waits for the first, or is told who is at work."""

from __future__ import annotations

from typing import Any

import pytest

from liveclone.model.snapshot import CaptureMethod
from tests.fault.conftest import Sources
from tests.machines import Lab, Operation, check_clear


def check_both(lab: Lab, sources: Sources, names: set[str]) -> None:
    """Fail unless the source runs, and exactly these snapshots are there, from each of which a clone starts."""
    sources.check()
    lab.snapshots_sealed()
    assert lab.find_faults() == []
    taken = lab.ctx.snapshots.list()
    assert {found.name for found in taken} == names
    for found in taken:
        clone = lab.clone(found)
        assert lab.http(clone)["token"] == sources.token
        lab.remove(clone)


def test_without_any_order(lab: Lab, sources: Sources) -> None:
    source = sources.take()
    with (
        Operation(lab, "snapshot", machine=source.id, name="one") as one,
        Operation(lab, "snapshot", machine=source.id, name="other") as other,
    ):
        assert "ok" in one.result()
        assert "ok" in other.result()
        check_both(lab, sources, {"one", "other"})
    # Whoever was first handed over; the other one saw that when its turn came.
    assert {found.capture.method for found in lab.ctx.snapshots.list()} == {
        CaptureMethod.HANDOVER,
        CaptureMethod.BACKGROUND,
    }


def test_the_second_one_waits(lab: Lab, sources: Sources) -> None:
    source = sources.any()
    arguments: dict[str, Any] = {"machine": source.id, "method": "background"}
    with Operation(lab, "snapshot", stops=["background.frozen"], name="first", **arguments) as first:
        first.reach("background.frozen")
        with Operation(lab, "snapshot", name="second", **arguments) as second:
            second.wait_for_lock(f"machine-{source.id}")
            assert second.passed == []
            first.go_on("background.frozen")
            assert "ok" in first.result()
            assert "ok" in second.result()
            check_both(lab, sources, {"first", "second"})


@pytest.mark.parametrize("do", ["snapshot", "stop", "remove"])
def test_one_who_cannot_wait_is_told_why(lab: Lab, sources: Sources, do: str) -> None:
    source = sources.any()
    arguments: dict[str, Any] = {"machine": source.id, "method": "background"}
    with Operation(lab, "snapshot", stops=["background.frozen"], name="first", **arguments) as first:
        first.reach("background.frozen")
        impatient = {"holding.BUSY_DEADLINE_S": 0.5}
        with Operation(lab, do, deadlines=impatient, machine=source.id) as second:
            error = second.result()["error"]
        assert (error["error"], error["kind"]) == ("busy", "Conflict")
        check_clear(error, source_state="not touched")
        assert f"process {first.pid}: snapshot of {source.name}" in error["seen"]
        first.go_on("background.frozen")
        assert "ok" in first.result()
        check_both(lab, sources, {"first"})


def test_one_name_for_two(lab: Lab, sources: Sources) -> None:
    """Whoever comes second is refused when its turn has come, and nothing of it is left."""
    source = sources.any()
    arguments: dict[str, Any] = {"machine": source.id, "name": "same", "method": "background"}
    with Operation(lab, "snapshot", **arguments) as one, Operation(lab, "snapshot", **arguments) as other:
        results = one.result(), other.result()
        (error,) = [result["error"] for result in results if "error" in result]
        assert error["error"] == "name-taken"
        check_clear(error, source_state="running")
        check_both(lab, sources, {"same"})
