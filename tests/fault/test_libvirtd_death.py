"""libvirtd is killed while it works for us, and in between; its domains run on, and a new one finds them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from liveclone import trace
from liveclone.engine import views
from liveclone.errors import HypervisorError
from liveclone.model.machine import MachineState
from liveclone.model.snapshot import Snapshot
from tests.fault.domains import Shop, no_libvirtd
from tests.machines import check_clear, find_points

GONE = ("libvirt-gone", "no-libvirt")
SNAPSHOT = ["snapshot.prepared", "snapshot.unplugged", *find_points("stream"), "snapshot.committed"]
# From "identified" to "verified" nothing is asked of libvirt.
CLONE = ["clone.made", "clone.started", "clone.loaded", "clone.restored", "clone.verified"]


@contextmanager
def dying_at(shop: Shop, point: str) -> Iterator[None]:
    """Let libvirtd die when the operation in the block comes to a point; on the way out there is a new one."""
    killed: list[str] = []

    def at(here: str) -> None:
        if here == point and not killed:
            if here == "snapshot.unplugged":
                # It waits for the job. A libvirtd that dies between a card's removal and writing that down finds a card
                # missing when it starts again, and ends the domain (libvirt 11.3; docs/libvirt.md).
                shop.domain.memoryStats()
            shop.libvirtd.kill()
            killed.append(here)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "at", at)
        try:
            yield
        finally:
            shop.libvirtd.restart()
            shop.connect()
    assert killed, f"{point} was not passed"


@pytest.mark.parametrize("point", SNAPSHOT)
def test_under_a_snapshot(shop: Shop, point: str) -> None:
    with dying_at(shop, point):
        error = shop.fails_to_snapshot()
    check_clear(error, source_state="running")
    assert error.code in GONE, error.fields()
    assert "libvirtd" in error.next_step
    assert f"liveclone repair {shop.machine.name}" in error.next_step
    assert shop.lab.repair() == [shop.machine.name]
    shop.check()
    assert len(shop.lab.ctx.snapshots.list()) == (point == "snapshot.committed")
    if point == "stream.paused":
        shop.clone(shop.lab.snapshot(shop.machine))
        shop.check()


@pytest.mark.parametrize("point", CLONE)
def test_under_a_clone(shop: Shop, taken: Snapshot, point: str) -> None:
    with dying_at(shop, point):
        (result,) = shop.lab.results(taken, names=["doomed"])
    assert result.error is not None
    check_clear(result.error, source_state="not touched")
    assert result.error.code in GONE, result.error.fields()
    assert "libvirtd" in result.error.next_step
    shop.lab.repair()
    shop.check()
    assert shop.find_left() == []


def test_what_is_known_is_found_again(shop: Shop, taken: Snapshot) -> None:
    clone = shop.lab.clone(taken, names=["kept"])
    with no_libvirtd(shop):
        summaries = shop.lab.wait(views.list_machines(shop.lab.ctx))
        assert {one.name: one.state for one in summaries} == {
            shop.machine.name: MachineState.RUNNING,
            "kept": MachineState.RUNNING,
        }
        error = shop.fails_to_snapshot()
        assert isinstance(error, HypervisorError)
        assert error.code == "no-libvirt"
        check_clear(error, source_state="not touched")
    assert shop.lab.repair() == []
    shop.check()
    assert shop.lab.shell(clone, "cat /root/note") == "then"
    shop.lab.remove_snapshot(shop.lab.snapshot(shop.machine))
    shop.lab.remove(clone)
    shop.check()
