"""The domain's owner goes on with it, and its QEMU dies: before a snapshot of ours, and in the middle of one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt
import pytest

from liveclone.errors import Corrupt, NotFound, Refused
from liveclone.formats import domain_rewrite
from liveclone.host import disk_layers
from tests.fault.domains import INACTIVE, Shop, doing_at
from tests.machines import Operation, check_clear, find_points, kill

STEPS = ["snapshot.prepared", *find_points("stream"), "snapshot.committed"]


def check_ended(shop: Shop) -> None:
    """Fail unless the domain is shut off, as its owner defined it, on its one disk, which is whole."""
    assert not shop.domain.isActive()
    assert shop.domain.XMLDesc(INACTIVE) == shop.before["definition"]
    assert sorted(path.name for path in shop.disks.iterdir()) == shop.before["files"]
    checked = subprocess.run(["qemu-img", "check", "-q", shop.disk], check=False)
    assert checked.returncode in (0, 3)


def take_their_snapshot(shop: Shop) -> Path:
    """Take a snapshot of the disk as its owner would, and leave it on."""
    layer = shop.disks / "theirs.qcow2"
    xml = domain_rewrite.render_snapshot({"vda": str(layer)})
    shop.domain.snapshotCreateXML(
        xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    )
    return layer


def test_destroyed_before(shop: Shop) -> None:
    shop.domain.destroy()
    error = shop.fails_to_snapshot()
    assert isinstance(error, NotFound)
    assert error.code == "not-running"
    check_clear(error, source_state="stopped")
    assert error.next_step == f"liveclone start {shop.machine.name}"
    check_ended(shop)


def test_undefined_before(shop: Shop) -> None:
    shop.domain.undefine()
    shop.domain.destroy()
    error = shop.fails_to_snapshot()
    assert isinstance(error, NotFound)
    assert error.code == "no-domain"
    check_clear(error, source_state="not here")
    assert shop.lab.repair() == []


def test_paused_before(shop: Shop) -> None:
    shop.domain.suspend()
    error = shop.fails_to_snapshot()
    assert isinstance(error, Refused)
    check_clear(error, source_state="paused")
    assert error.next_step == f"liveclone start {shop.machine.name}"
    assert shop.domain.state()[0] == 3
    shop.domain.resume()
    shop.check()


def test_on_a_layer_of_its_owners(shop: Shop) -> None:
    layer = take_their_snapshot(shop)
    shop.shell("echo theirs > /root/note2; sync")
    taken = shop.lab.snapshot(shop.machine)
    now = shop.look()
    assert now["disks"] == [str(layer)]
    assert now["files"] == sorted([*shop.before["files"], layer.name])
    assert now["nics"] == shop.before["nics"]
    clone = shop.lab.clone(taken, names=["doomed"])
    assert shop.lab.shell(clone, "cat /root/note /root/note2") == "then\ntheirs"
    shop.lab.remove(clone)
    commit = ["virsh", "-c", shop.libvirtd.uri, "blockcommit", shop.machine.name, "vda"]
    subprocess.run([*commit, "--active", "--shallow", "--pivot"], check=True, capture_output=True)
    layer.unlink()
    shop.check()
    # The copy of their layer stood on what they have just written to.
    with pytest.raises(Corrupt) as caught:
        shop.lab.results(taken, names=["doomed"])
    check_clear(caught.value, source_state="not touched")
    assert (caught.value.code, caught.value.on) == ("damaged-part", str(shop.disk))


def test_its_owner_puts_a_layer_on_ours(shop: Shop) -> None:
    with doing_at("stream.resumed", lambda: take_their_snapshot(shop)) as errors:
        taken = shop.lab.snapshot(shop.machine)
    assert errors == []
    layer = shop.disks / "theirs.qcow2"
    assert disk_layers.find_layers(layer)[1] == shop.disk
    now = shop.look()
    assert now["disks"] == [str(layer)]
    assert now["files"] == sorted([*shop.before["files"], layer.name])
    assert now["nics"] == shop.before["nics"]
    shop.clone(taken)
    shop.revive()


@pytest.mark.parametrize("point", STEPS)
def test_destroyed_meanwhile(shop: Shop, point: str) -> None:
    with doing_at(point, lambda: shop.domain.destroy()) as errors:
        shop.lab.snapshot(shop.machine)
    (error,) = errors
    check_clear(error, source_state="stopped")
    assert error.next_step.startswith(f"liveclone start {shop.machine.name}")
    assert shop.lab.repair() == []
    check_ended(shop)
    assert len(shop.lab.ctx.snapshots.list()) == (point == "snapshot.committed")


def test_destroyed_when_the_snapshot_stands_its_overlay_stays_if_it_was_to_be_kept(shop: Shop) -> None:
    with doing_at("snapshot.committed", lambda: shop.domain.destroy()) as errors:
        shop.lab.snapshot(shop.machine, keep_overlay=True)
    (error,) = errors
    check_clear(error, source_state="stopped")
    (taken,) = shop.lab.ctx.snapshots.list()
    layer = shop.disks / f"{shop.disk.stem}.liveclone-{taken.id}.qcow2"
    assert f"<source file='{layer}'/>" in shop.domain.XMLDesc(INACTIVE)
    assert disk_layers.find_layers(layer)[1] == shop.disk


def test_what_it_wrote_before_its_qemu_died_is_kept(shop: Shop) -> None:
    """Our process is dead too: the next command finds a domain that is shut off, on a layer of ours."""
    mark = "written-behind-the-freeze"
    with Operation(shop.lab, "snapshot", stops=["stream.resumed"], machine=shop.machine.id) as operation:
        operation.reach("stream.resumed")
        shop.shell(f"echo {mark} > /root/late; sync")
        operation.kill()
    kill(shop.before["pid"])
    assert shop.lab.repair() == [shop.machine.name]
    check_ended(shop)
    with disk_layers.Disk(disk_layers.find_layers(shop.disk)) as disk:
        assert mark.encode() in b"".join(data for _, data in disk.read_own(0))
