"""Let go of things that the caller holds: halt a machine, dispose of it or of a snapshot, sweep up what belongs to nothing.

A frozen disk layer outlives its snapshot as long as a machine or a snapshot stands on it: then its folder under
`snapshots/` has no manifest any more (so nobody sees it) and holds the layer alone. `sweep` takes it when the last one
has gone. Memory is different: a process that maps an image keeps it alive by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import LivecloneError, NotFound, StoreError
from ..host import files, locks, process
from ..ids import is_id
from ..model.machine import Machine, MemorySource
from ..store.layout import MANIFEST
from . import parts, wiring
from .context import Context


def begin_machine(ctx: Context, machine_id: str, operation: str, **facts: Any) -> None:
    """Make the folder of a new machine, with its journal; the caller holds the id.

    Before its address is taken and its manifest written, so that `sweep` finds whatever a death in between leaves.
    """
    files.make_folder(ctx.layout.machine(machine_id))
    ctx.journal(machine_id).begin(operation, **facts)


async def halt(ctx: Context, machine: Machine) -> Machine:
    """Make sure that no process of the machine is left, and return its manifest as stopped. Its disk stays."""
    await wiring.unpublish(machine)
    if machine.process is not None and process.is_alive(machine.process):
        await process.end(machine.process)
    await _end_forgotten(ctx, machine.id)
    for folder in ctx.layout.machine(machine.id).glob("run*"):
        folder.unlink() if folder.is_symlink() else files.remove_tree(folder)
    if machine.memory is not None and machine.memory.source is MemorySource.SHARED_HOT:
        Path(machine.memory.path).unlink(missing_ok=True)
    stopped: Machine = machine.replace(process=None, port_process=None, memory=None)
    if stopped != machine:
        ctx.machines.save(stopped)
    return stopped


async def dispose(ctx: Context, machine: Machine) -> None:
    """Remove a machine with all it has; the caller holds it. Snapshots of it stay."""
    if ctx.journal(machine.id).read() is None:
        ctx.journal(machine.id).begin("remove")
    if machine.adopted:  # it was there before us, and stays as it is
        await wiring.unpublish(machine)
    else:
        await halt(ctx, machine)
        await ctx.driver_for(machine.driver).forget(ctx.layout.machine(machine.id))
    ctx.layout.ram(machine.id).unlink(missing_ok=True)
    ctx.machines.remove(machine.id)
    wiring.release(ctx, machine)
    ctx.layout.lock(f"machine-{machine.id}").unlink(missing_ok=True)
    sweep(ctx)


async def dispose_unknown(ctx: Context, machine_id: str) -> None:
    """Remove a machine whose manifest cannot be read, with all that its id leads to; the caller holds it."""
    await _end_forgotten(ctx, machine_id)
    await ctx.driver.forget(ctx.layout.machine(machine_id))
    ctx.layout.ram(machine_id).unlink(missing_ok=True)
    _discard(ctx, machine_id)
    wiring.remove_unused_network(ctx)
    sweep(ctx)


async def _end_forgotten(ctx: Context, machine_id: str) -> None:
    """End what was started for a machine, by somebody who died before writing it down."""
    for forgotten in process.find_logging_into(ctx.layout.machine(machine_id)):
        await process.end(forgotten)


async def dispose_id(ctx: Context, machine_id: str) -> None:
    """Remove what there is of a machine that may have got no further than `begin_machine`; the caller holds it."""
    try:
        machine = ctx.machines.load(machine_id)
    except NotFound:
        await dispose_unmade(ctx, machine_id)
        return
    await dispose(ctx, machine)


async def dispose_unmade(ctx: Context, machine_id: str) -> None:
    """Remove a machine without a manifest: one that was waiting in a pool has a process; the caller holds it."""
    await _end_forgotten(ctx, machine_id)
    _discard(ctx, machine_id)


def _discard(ctx: Context, machine_id: str) -> None:
    """Remove what there is of a machine that has no manifest, and no process any more."""
    ctx.leases.free(machine_id)
    files.remove_tree(ctx.layout.machine(machine_id))
    ctx.layout.lock(f"machine-{machine_id}").unlink(missing_ok=True)


def dispose_snapshot(ctx: Context, snapshot_id: str, hot: Path) -> None:
    """Remove a snapshot and its memory image `hot`; the caller holds it alone.

    Machines that run from it run on; layers in use stay. Machines that wait for clones of it have gone before (pool.drain).
    """
    folder = ctx.layout.snapshot(snapshot_id)
    hot.unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    keep_layer_only(folder)
    ctx.layout.lock(f"snapshot-{snapshot_id}").unlink(missing_ok=True)
    sweep(ctx)


def keep_layer_only(folder: Path) -> None:
    """Remove all of a snapshot's folder but its frozen disk layer, and what machines on it start from cold with."""
    try:
        for path in folder.iterdir():
            if path.is_dir():
                files.remove_tree(path)
            elif not path.name.startswith(parts.DISKS) and path.name not in parts.BOOT:
                path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"a part of a snapshot cannot be removed: {error.strerror}",
            tried="removing a snapshot",
            on=str(folder),
            seen=str(error),
            next_step="liveclone repair",
        ) from error


def sweep(ctx: Context) -> None:
    """Remove what belongs to nothing: half-made machines, frozen layers that nobody stands on, files on tmpfs without
    an owner.

    Harmless at any time: what an operation under way is making is locked or in its journal, which are asked first.
    """
    for folder in ctx.layout.machines.iterdir():
        if not (folder / MANIFEST).exists() and _is_half_made(ctx, folder):
            _discard(ctx, folder.name)
    machines, snapshots = ctx.machines.list(), ctx.snapshots.list()
    working = set()
    for machine in machines:
        try:
            entry = ctx.journal(machine.id).read()
        except (LivecloneError, OSError):
            continue
        if entry is not None:
            working.add(str(entry.facts.get("snapshot", "")))
    needed = {snapshot.id for snapshot in snapshots} | working
    needed |= {layer for machine in machines for layer in machine.layers}
    needed |= {layer for snapshot in snapshots for layer in snapshot.layers}
    for folder in ctx.layout.snapshots.iterdir():
        if folder.name not in needed and not locks.is_held(ctx.layout.lock(f"snapshot-{folder.name}")):
            files.remove_tree(folder)
            ctx.layout.lock(f"snapshot-{folder.name}").unlink(missing_ok=True)
    used = {machine.memory.path for machine in machines if machine.memory}
    used |= {snapshot.hot.path for snapshot in snapshots if snapshot.hot}
    used |= {str(ctx.layout.hot_image(snapshot_id)) for snapshot_id in working}
    for path in ctx.layout.hot.glob("*.*"):
        owner_id = path.name.partition(".")[0]
        known = any(machine.id == owner_id for machine in machines)
        busy = _is_busy(ctx, owner_id) or locks.is_held(ctx.layout.lock(f"snapshot-{owner_id}"))
        if str(path) not in used and not known and not busy:
            path.unlink(missing_ok=True)
    sweep_locks(ctx)


def sweep_locks(ctx: Context) -> None:
    """Remove the locks of machines and snapshots that are gone, but for those that somebody holds.

    One that is sealed while it is removed, say: who seals it does this again when he has let go of it. A machine that waits
    in a pool has no manifest, but a folder: its lock stays, so that nobody who wants to take it finds it held by us.
    """
    for path in ctx.layout.locks.glob("*-*"):
        owner_id = path.name.rpartition("-")[2].partition(".")[0]
        lives = ctx.layout.machine(owner_id).exists() or (ctx.layout.snapshot(owner_id) / MANIFEST).exists()
        if is_id(owner_id) and not lives:
            locks.remove(path)


def _is_half_made(ctx: Context, folder: Path) -> bool:
    # In this order: whoever makes a machine, or takes one that waits, holds its lock until its record or manifest is there.
    if _is_busy(ctx, folder.name):
        return False
    waits = any(
        ctx.layout.waiting(path.name, folder.name).exists() for path in ctx.layout.snapshots.iterdir()
    )
    return not waits and not (folder / MANIFEST).exists()


def _is_busy(ctx: Context, machine_id: str) -> bool:
    return locks.is_held(ctx.layout.lock(f"machine-{machine_id}"))
