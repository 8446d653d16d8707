"""The hot folder, or the disk of the domain, runs full while it is captured: all is undone, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.errors import HypervisorError, Refused
from liveclone.units import MIB
from tests.fault.domains import RAM_MIB, RUNNING, Shop, doing_at
from tests.fault.rooms import Room
from tests.machines import Operation, check_clear

POINTS = ["snapshot.prepared", "stream.pausing", "stream.resumed"]


@pytest.fixture
def hot(shop: Shop) -> Iterator[Room]:
    """The file system of the hot folder; it is given back."""
    yield shop.hot_room
    shop.hot_room.free()


@pytest.fixture
def disks(shop: Shop) -> Iterator[Room]:
    """The same for the one that its disk is on."""
    yield shop.disk_room
    shop.disk_room.free()


def test_too_full_for_an_image(shop: Shop, hot: Room) -> None:
    hot.fill(leave_bytes=(RAM_MIB - 1) * MIB)
    error = shop.fails_to_snapshot()
    assert isinstance(error, Refused)
    assert error.code == "hot-full"
    check_clear(error, source_state="not touched")
    hot.free()
    shop.check()


@pytest.mark.parametrize("point", POINTS)
def test_the_hot_folder_fills_meanwhile(shop: Shop, hot: Room, point: str) -> None:
    with doing_at(point, hot.fill) as errors:
        shop.lab.snapshot(shop.machine)
    (error,) = errors
    check_clear(error, source_state="running")
    assert error.code == "disk-full", error.fields()
    assert shop.lab.repair() == []
    hot.free()
    shop.check()
    assert shop.lab.ctx.snapshots.list() == []


@pytest.mark.parametrize("point", ["snapshot.prepared", "stream.pausing"])
def test_no_room_for_a_layer(shop: Shop, disks: Room, point: str) -> None:
    with doing_at(point, disks.fill) as errors:
        shop.lab.snapshot(shop.machine)
    (error,) = errors
    check_clear(error, source_state="running")
    assert error.code == "disk-full", error.fields()
    disks.free()
    # A guest that writes where there is no room stands still, and its agent does not answer.
    assert shop.lab.repair() == ([shop.machine.name] if "liveclone repair" in error.next_step else [])
    if shop.domain.state()[0] != RUNNING:
        shop.domain.resume()
    shop.check()
    assert shop.lab.ctx.snapshots.list() == []


def test_its_disk_cannot_be_copied_behind_the_split(shop: Shop) -> None:
    """The memory image is there already by then."""

    def bar() -> None:
        (folder,) = shop.lab.ctx.layout.snapshots.iterdir()
        (folder / "disk-vda.qcow2").symlink_to("/dev/full")

    with doing_at("stream.resumed", bar) as errors:
        shop.lab.snapshot(shop.machine)
    (error,) = errors
    check_clear(error, source_state="running")
    assert shop.find_left() == []
    shop.check()


def test_no_room_to_put_back_what_the_layer_holds(shop: Shop, disks: Room) -> None:
    """The domain stays on the layer, with all that its guest wrote, until there is room."""
    layer, name = f"{shop.disk.stem}.liveclone-", shop.machine.name
    with Operation(shop.lab, "snapshot", stops=["stream.resumed"], machine=shop.machine.id) as operation:
        operation.reach("stream.resumed")
        shop.shell("head -c 8000000 /dev/urandom > /root/blob; sync; sha256sum < /root/blob > /run/sum")
        disks.fill()
        operation.go_on("stream.resumed")
        error = operation.result()["error"]
    check_clear(error, source_state="running")
    assert "on a disk layer" in error["source_state"]
    assert f"liveclone repair {name}" in error["next_step"]
    with pytest.raises(HypervisorError) as caught:
        shop.lab.repair()
    assert caught.value.code == "on-layer"
    check_clear(caught.value, source_state="running, on the layer")
    now = shop.look()
    assert (now["nics"], now["addresses"]) == (shop.before["nics"], shop.before["addresses"])
    assert Path(now["disks"][0]).name.startswith(layer)
    disks.free()
    assert shop.lab.repair() == [name]
    shop.check()
    assert shop.shell("sha256sum < /root/blob") == shop.shell("cat /run/sum")
