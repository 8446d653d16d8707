"""Take a live snapshot of a running machine, and leave the machine running whatever happens.

    step        what                                               its undo
    scan        agent: what is not safe to copy; policy: refuse?   -
    prepare     agent: observe the identity, application hooks     agent: resume hooks
    scrub       if asked for: secrets leave the guest              put them back
    capture     driver: all that can be done while it runs, then   the driver's
      unplug      every NIC                                        plug them again, configure
      pause       freeze disk, state, memory, run                  resume in the old process, on the old layer
    commit      the machine's manifest names its new layer         -  (from here on: forward only)
    resume      NICs back; agent: new generation, fresh entropy,   -  the snapshot stands; a failure is reported,
                secrets back                                         a failed `resumed` hook as a warning
    proof       if scrubbed: the parts are searched for them       -
    manifest    the snapshot's manifest: clones can start          -
    seal        digests, durable copy, in a process of its own     -

Each step is in the machine's journal before it begins; what a killed process left is settled by `recover`. A command that is
cancelled is undone as far as there is a way back; later it goes on to the end, and then the snapshot is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from typing import Any

from .. import trace
from ..drivers.base import Captured, CapturePlan, Handle
from ..errors import LivecloneError, NotFound
from ..host import files, process
from ..model.snapshot import CaptureMethod, Snapshot
from . import agent as agents
from . import death, identify, parts, remove, scan, scrub, seal, snapshot_commit, wiring
from .context import Context
from .holding import hold_machine
from .snapshot_plan import Request, Scrubbing, Work, check_state, plan

__all__ = ["Request", "Scrubbing", "take"]


async def take(ctx: Context, request: Request) -> Snapshot:
    """Take a live snapshot; returns when clones can start from it (or, with `wait_sealed`, when it is sealed).

    Raises:
        Refused: the machine cannot be captured as it is (not running, quarantined, a name that is none, something in it
            that the policy does not let two machines have); no such policy is NotFound.
        Conflict: the name is taken, or another command works on the machine.
        GuestError, TimedOut, HypervisorError, StoreError: a step failed. The source runs on, in every case but
            the death of its own QEMU, and the error says so.
    """
    found = ctx.machines.find(request.machine)
    async with hold_machine(ctx, found.id, f"snapshot of {found.name}") as machine:
        try:
            handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
        except NotFound as error:
            error.source_state = error.source_state or "stopped"
            raise
        owned = AsyncExitStack()
        owned.push_async_callback(handle.close)
        async with owned:
            await check_state(handle, machine)
            work = plan(ctx, machine, request)
            try:
                await _scan(work, handle)
                snapshot, handle = await _carry_out_or_undo(work, handle)
            except LivecloneError as error:
                error.source_state = error.source_state or "running"
                if work.died:
                    await death.settle_snapshot(ctx, machine, error)
                elif work.unsettled:
                    error.source_state = "running, " + " and ".join(work.unsettled)
                    error.next_step += f"; then liveclone repair {machine.name}"
                raise
            owned.pop_all()
            owned.push_async_callback(handle.close)
    sealing = seal.start(ctx, snapshot)
    if request.wait_sealed:
        snapshot = await seal.wait(ctx, snapshot, sealing)
    return snapshot


async def _scan(work: Work, handle: Handle) -> None:
    """Look for what is not safe to copy, and refuse to go on if the policy does not take it. Nothing is changed."""
    work.ctx.progress("looking for what is not safe to copy", None)
    try:
        with death.explained(state="running", next_step=f"liveclone snapshot {work.machine.name}"):
            work.scan = await scan.examine(handle, work.machine, work.policy)
    except LivecloneError:
        work.died = await death.happened(handle)
        raise
    scan.check(work.scan)
    work.mark("scan")


async def _carry_out_or_undo(work: Work, handle: Handle) -> tuple[Snapshot, Handle]:
    """Do the steps, in a task of their own: a cancellation reaches them only while there is a way back."""
    steps = asyncio.create_task(_carry_out(work, handle))
    stopped: asyncio.CancelledError | None = None
    while not steps.done():
        try:
            await asyncio.wait({steps})
        except asyncio.CancelledError as error:
            if stopped is None and not work.is_final:
                steps.cancel()
            stopped = error
    snapshot, present = steps.result()
    if stopped is not None:
        await present.close()
        await remove.remove_snapshot(work.ctx, snapshot.id)
        raise stopped
    return snapshot, present


async def _carry_out(work: Work, handle: Handle) -> tuple[Snapshot, Handle]:
    """Do the steps; returns the snapshot and the handle of the process in which the source runs on."""
    ctx, machine, journal = work.ctx, work.machine, work.journal
    async with AsyncExitStack() as undo:
        files.make_folder(work.folder)
        undo.callback(work.drop)
        journal.begin(
            "snapshot",
            snapshot=work.id,
            name=work.name,
            memory=str(work.memory),
            disks=[{"present": str(disk.present), "layer": str(disk.layer)} for disk in work.disks],
            method=work.method.value,
        )
        undo.callback(work.end)
        trace.at("snapshot.begun")
        work.key = ctx.evidence(work.id).make_key()
        try:
            with death.explained(state="running", next_step=f"liveclone snapshot {machine.name}"):
                captured = await _until_captured(work, handle, undo)
        except BaseException:
            work.died = await death.happened(handle)
            if work.died:
                undo.pop_all()  # nobody is left to go back to: `take`, or the next command, settles it
            raise
    snapshot = await snapshot_commit.finish(work, captured)
    return snapshot, captured.handle


async def _until_captured(work: Work, handle: Handle, undo: AsyncExitStack) -> Captured:
    ctx, machine, journal = work.ctx, work.machine, work.journal
    async with agents.connect(handle, machine.name) as agent:
        ctx.progress("preparing the guest", None)
        journal.note("prepare")
        work.items = await identify.observe(agent, work.key, work.id)
        work.mark("prepare")
        trace.at("snapshot.prepared")
        undo.push_async_callback(_undo_prepare, work, handle)
        work.machine = machine = await wiring.learn(machine, agent)
        ctx.machines.save(machine)  # whoever settles this gives them back
        if work.scrub is not None:
            journal.note("scrub")
            work.taken = await scrub.take_out(ctx, machine, handle, agent, work.scrub.paths, work.scrub.units)
            work.mark("scrub")
            trace.at("scrub.clean")
        # Still connected when the state is saved: in a clone the agent's port is connected from the start.
        return await _capture(work, handle, agent, undo)


async def _capture(work: Work, handle: Handle, agent: agents.Agent, undo: AsyncExitStack) -> Captured:
    ctx, machine, journal = work.ctx, work.machine, work.journal

    def note(step: str, **facts: Any) -> None:
        journal.note(step, **facts)
        work.is_final = work.is_final or step == "committing"
        work.layered = work.layered or (step == "pausing" and work.method is not CaptureMethod.HANDOVER)

    async def unplug() -> None:
        journal.note("unplug")
        await wiring.disconnect(handle, machine)
        trace.at("snapshot.unplugged")

    async def plug() -> None:
        with contextlib.suppress(LivecloneError):  # it is tried again, and told of, when all is done
            await wiring.reconnect(ctx, handle, machine, agent)

    ctx.progress(f"capturing by {work.method.value}", None)
    undo.callback(work.memory.unlink, missing_ok=True)
    if work.method is CaptureMethod.HANDOVER:
        # The RAM file gets the image's name, as the disk layers get the snapshot's.
        files.hard_link(ctx.layout.ram(machine.id), work.memory)
    undo.callback(_undo_layer, work)
    for disk in work.disks if not machine.adopted else ():
        files.hard_link(disk.present, disk.frozen)
        parts.make_overlay(disk.layer, disk.frozen, disk.size_bytes)
    plan = CapturePlan(
        method=work.method,
        machine=machine,
        folder=ctx.layout.machine(machine.id),
        device_state=work.folder / parts.STATE,
        memory=work.memory,
        frozen_disk=work.disks[0].frozen,
        next_disk=work.disks[0].layer,
        note=note,
        before_pause=unplug,
        after_pause=plug,
        disks=work.disks,
        keep_overlay=work.keep_overlay,
        tell=ctx.progress,
    )
    captured = await handle.capture(plan)
    # The source may be another process now. No await may come before this one: a ctrl-C that was put off comes with it.
    undo.pop_all()
    work.is_final = True
    work.mark("capture")
    return captured


async def _undo_prepare(work: Work, handle: Handle) -> None:
    """Plug the NICs again and tell the guest that it goes on; a silent agent is no reason to leave the NICs out."""
    ctx, machine = work.ctx, work.machine

    async def carry_out() -> None:
        try:
            await wiring.reconnect(ctx, handle, machine, None)
            async with agents.connect(handle, machine.name) as agent:
                await wiring.configure(machine, agent)
                await identify.refresh(agent, machine, work.key, work.id)
                await scrub.put_back(ctx, machine, agent)
        except LivecloneError:
            if process.is_alive(machine.process):
                work.unsettled.append("without its network or its secrets")

    await asyncio.shield(carry_out())


def _undo_layer(work: Work) -> None:
    """Delete the next layers, unless the driver could not take one off again: then the guest writes it."""
    layers = [disk.layer for disk in work.disks]
    if work.layered and any(layer.exists() for layer in layers):
        work.unsettled.append("on a disk layer that could not be taken off again")
        work.keeps_folder = True
    else:
        for layer in layers:
            layer.unlink(missing_ok=True)
