"""What is left of a machine with several disks; real ones are in tests/vm/test_libvirt.py."""

from __future__ import annotations

from pathlib import Path

from liveclone.engine import run
from liveclone.ids import new_id
from liveclone.model.disk import Disk

from .world import World


async def test_of_each_disk_the_layer_that_was_not_written_back_counts(world: World) -> None:
    """It died in a capture when one of its disks was on its old layer again, and the other was not."""
    await world.run()
    machine = await run.stop(world.ctx, "web", force=True)
    layout, taken = world.ctx.layout, new_id()
    own, frozen = layout.machine(machine.id), layout.snapshot(taken)
    vda, vdb, next_vda, next_vdb = map(
        str, (machine.disk, own / "disk-vdb", own / "next-vda", own / "next-vdb")
    )
    disks = [Disk(target=t, path=p, format="qcow2", size_bytes=512) for t, p in (("vda", vda), ("vdb", vdb))]
    world.ctx.machines.save(machine.replace(disks=tuple(disks)))
    frozen.mkdir(parents=True)
    for path in (vdb, next_vdb, frozen / "disk-vda.qcow2", frozen / "disk-vdb.qcow2", frozen / "state"):
        Path(path).touch()
    facts = [{"present": vda, "layer": next_vda}, {"present": vdb, "layer": next_vdb}]
    journal = world.ctx.journal(machine.id)
    journal.begin("snapshot", snapshot=taken, memory=str(layout.hot_image(taken)), disks=facts)
    journal.note("frozen", on_next_disk=True)

    assert await world.repair() == ["web"]
    now = world.machine("web")
    assert (now.disk, [disk.path for disk in now.disks]) == (vda, [vda, next_vdb])
    assert now.layers == (taken, *machine.layers)
    assert sorted(path.name for path in own.glob("*-vd?")) == ["next-vdb"]
    assert sorted(path.name for path in frozen.iterdir()) == ["disk-vda.qcow2", "disk-vdb.qcow2"]
    await world.remove_all()


async def test_disks_that_were_all_written_back_stand_on_no_snapshot(world: World) -> None:
    await world.run()
    machine = await run.stop(world.ctx, "web", force=True)
    taken = new_id()
    world.ctx.layout.snapshot(taken).mkdir(parents=True)
    facts = [{"present": machine.disk, "layer": str(world.home / "gone")}]
    journal = world.ctx.journal(machine.id)
    journal.begin("snapshot", snapshot=taken, memory=str(world.ctx.layout.hot_image(taken)), disks=facts)
    journal.note("frozen", on_next_disk=True)
    assert await world.repair() == ["web"]
    assert world.machine("web") == machine
    assert await world.find_faults() == []
    await world.remove_all()
