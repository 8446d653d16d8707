"""A machine's folder and process from a snapshot, standing still: what clones and waiting machines have in common.

It has no name of its own yet that anybody was told, no identity, no NIC, no address.
"""

from __future__ import annotations

from pathlib import Path

from ..drivers.base import Handle, RestorePlan
from ..model.base import now
from ..model.disk import Disk
from ..model.machine import Machine, Memory
from ..model.network import NetworkKind
from ..model.snapshot import Snapshot
from . import identify, parts
from .context import Context


def plan_machine(ctx: Context, snapshot: Snapshot, machine_id: str, name: str) -> Machine:
    """Return the manifest of a new machine from a snapshot, without a network; nothing is made."""
    disk = ctx.layout.machine(machine_id) / "disk.qcow2"
    return Machine(
        id=machine_id,
        name=name,
        created_at=now(),
        driver=snapshot.driver,
        hardware=snapshot.hardware,
        image=snapshot.image,
        boot=snapshot.boot,
        disk=str(disk),
        disk_bytes=snapshot.disk_bytes,
        disks=tuple(
            Disk(target=one.target, path=str(path), format="qcow2", size_bytes=one.size_bytes)
            for one, path in zip(snapshot.disks, _paths(disk, snapshot), strict=True)
        ),
        layers=(snapshot.id, *snapshot.layers),
        network=NetworkKind.NONE,
        generation=identify.first_generation().replace(counter=1),
        clone_of=snapshot.id,
    )


def make_disks(ctx: Context, snapshot: Snapshot, machine: Machine) -> None:
    """Make the machine's layers on the snapshot's frozen disks; its folder is there."""
    disk, below = Path(machine.disk), ctx.layout.snapshot(snapshot.id)
    parts.make_overlay(disk, below / snapshot.disk.file, snapshot.disk_bytes, snapshot.disk_format)
    for one, path in list(zip(snapshot.disks, _paths(disk, snapshot), strict=True))[1:]:
        parts.make_overlay(path, below / one.part.file, one.size_bytes, one.format)


async def start(ctx: Context, snapshot: Snapshot, machine: Machine, memory: Memory) -> Handle:
    """Start the machine's process, load the device state and return with it paused. On failure no process is left."""
    plan = RestorePlan(
        machine_id=machine.id,
        name=machine.name,
        folder=ctx.layout.machine(machine.id),
        hardware=machine.hardware,
        boot=machine.boot,
        disk=Path(machine.disk),
        memory=memory,
        device_state=ctx.layout.snapshot(snapshot.id) / snapshot.device_state.file,
        ignore_shared=snapshot.ignore_shared,
        disks=machine.disks,
    )
    return await ctx.driver_for(snapshot.driver).restore(plan)


def _paths(disk: Path, snapshot: Snapshot) -> list[Path]:
    """Return where the disks of the machine are, the first of which is `disk`."""
    return [disk, *(disk.with_name(f"disk-{one.target}.qcow2") for one in snapshot.disks[1:])][
        : len(snapshot.disks)
    ]
