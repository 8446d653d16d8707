"""Settle what a dead operation left: its machine runs again, and nothing of the operation is left over.

The journal says which operation it was and what it made. Settling is idempotent: it may die as well and is begun anew.

    run, clone, start    the machine never became ready: its process ends; run and clone remove it whole
    snapshot             driver.recover leaves one running process (finishing or undoing a handover), then the NICs and
                         the agent; the snapshot, which has no manifest yet, is removed, unless it was complete. If no
                         process is left the machine is stopped, with the layers that its guest wrote last
    stop, remove         done to the end
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..errors import HypervisorError, LivecloneError, NotFound
from ..host import files, process
from ..model.machine import Machine
from ..store.journal import Entry
from . import agent as agents
from . import disposal, identify, parts, scrub, wiring
from .context import Context


async def settle(ctx: Context, machine: Machine) -> Machine:
    """Settle the machine's interrupted operation; the caller holds the machine.

    Returns:
        The manifest as it is afterwards.

    Raises:
        NotFound: the operation was making or removing the machine; it is gone now (code "no-machine").
    """
    entry = ctx.journal(machine.id).read()
    if entry is None:
        return machine
    ctx.progress(f"settling an interrupted {entry.operation} of {machine.name}", None)
    if entry.operation == "snapshot":
        machine = await _settle_snapshot(ctx, machine, entry)
    elif entry.operation in ("run", "clone", "remove"):
        await disposal.dispose(ctx, machine)
        raise NotFound(
            f"{machine.name} is gone: an interrupted {entry.operation} was settled by removing it",
            code="no-machine",
            tried=f"settling an interrupted {entry.operation}",
            on=machine.name,
            seen=f"it had reached {entry.step}",
            next_step=f"do the {entry.operation} again" if entry.operation != "remove" else "",
        )
    else:
        machine = await disposal.halt(ctx, machine)
    ctx.journal(machine.id).end()
    return machine


async def _settle_snapshot(ctx: Context, machine: Machine, entry: Entry) -> Machine:
    facts = entry.facts
    snapshot_id, folder = facts["snapshot"], ctx.layout.machine(machine.id)
    committed = snapshot_id in machine.layers
    stays_on_layer = False
    complete = any(snapshot.id == snapshot_id for snapshot in ctx.snapshots.list())
    if complete:
        facts = facts | {"layers": []}  # none is left but those that are to be kept
    try:
        if not committed:
            found = await ctx.driver_for(machine.driver).recover(machine, folder, facts)
            machine = machine.replace(process=found.process, memory=found.memory)
            stays_on_layer = found.on_next_disk and machine.adopted
            if found.on_next_disk and not machine.adopted:
                machine = _on_next_layers(machine, facts)
            ctx.machines.save(machine)
        elif not process.is_alive(machine.process):
            raise NotFound(f"{machine.name} does not run any more", code="not-running", on=machine.name)
        machine = await _renew(ctx, machine)
    except NotFound:
        if snapshot_id not in machine.layers and facts.get("on_next_disk"):
            machine = _on_next_layers(machine, facts)
            ctx.machines.save(machine)
        machine = await disposal.halt(ctx, machine)
    committed = snapshot_id in machine.layers
    _unlink_unused(ctx, machine, facts)
    ram = ctx.layout.ram(machine.id)
    if committed and (machine.memory is None or machine.memory.path != str(ram)):
        ram.unlink(missing_ok=True)  # the snapshot's name for it is the one that counts
    if not complete:
        _drop(ctx, machine, snapshot_id, Path(facts["memory"]), keep_layer=committed)
    if stays_on_layer:
        raise HypervisorError(
            f"{machine.name} is on a disk layer that could not be taken off again",
            code="on-layer",
            tried="settling an interrupted snapshot",
            on=machine.name,
            seen=", ".join(facts.get("layers", ())),
            source_state="running, on the layer",
            next_step=f"make room on its disk; then liveclone repair {machine.name}",
        )
    return machine


def _on_next_layers(machine: Machine, facts: dict[str, Any]) -> Machine:
    """Return the manifest of a machine of ours that writes its next layers, but those that were taken off again."""
    tops = {one["present"]: one["layer"] for one in facts["disks"] if Path(one["layer"]).exists()}
    return parts.on_layers(machine, facts["snapshot"], tops) if tops else machine


def _unlink_unused(ctx: Context, machine: Machine, facts: dict[str, Any]) -> None:
    """Remove next layers of a machine of ours that it does not write, and old tops: the snapshot's names are what counts."""
    if machine.adopted:
        return
    tops = {machine.disk, *(disk.path for disk in machine.disks)}
    # Who else may work on the machine knows the old tops by these names.
    names = ("layer",) if ctx.driver_for(machine.driver).shared else ("layer", "present")
    for path in (one[name] for one in facts["disks"] for name in names):
        if path not in tops:
            Path(path).unlink(missing_ok=True)


async def _renew(ctx: Context, machine: Machine) -> Machine:
    """Network, generation and entropy of a source whose snapshot was cut short. A silent agent is left for later."""
    handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
    try:
        await handle.resume()  # a guest that wrote while the disk was full stands still
        await wiring.reconnect(ctx, handle, machine, None)
        if not process.is_alive(machine.port_process):  # it waits a few seconds for a successor, then ends
            machine = wiring.publish(ctx, machine)
            ctx.machines.save(machine)
        with contextlib.suppress(LivecloneError):
            async with agents.connect(handle, machine.name) as agent:
                await wiring.configure(machine, agent)
                renewed = machine.replace(generation=identify.next_generation(machine.generation))
                await identify.refresh(agent, renewed, b"\0" * 32, "")
                ctx.machines.save(renewed)
                machine = renewed
                await scrub.put_back(ctx, machine, agent)
    finally:
        await handle.close()
    return machine


async def bring_back(ctx: Context, machine: Machine) -> None:
    """Bring secrets back that an earlier command could not; a silent agent, or a stopped machine, is left for later."""
    with contextlib.suppress(LivecloneError):
        if process.is_alive(machine.process):
            handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
            try:
                async with agents.connect(handle, machine.name) as agent:
                    await scrub.put_back(ctx, machine, agent)
            finally:
                await handle.close()


def _drop(ctx: Context, machine: Machine, snapshot_id: str, memory: Path, *, keep_layer: bool) -> None:
    """Remove a snapshot that was never finished; its frozen layer stays if the machine's disk stands on it."""
    if machine.memory is None or machine.memory.path != str(memory):
        memory.unlink(missing_ok=True)
    if keep_layer:
        disposal.keep_layer_only(ctx.layout.snapshot(snapshot_id))
    else:
        files.remove_tree(ctx.layout.snapshot(snapshot_id))
