"""Take a live snapshot of a running machine, and leave the machine running whatever happens.

    step        what                                               its undo
    prepare     agent: observe the identity, application hooks     agent: resume hooks
    capture     driver: all that can be done while it runs, then   the driver's
      unplug      every NIC                                        plug them again, configure
      pause       freeze disk, state, memory, run                  resume in the old process, on the old layer
    commit      the machine's manifest names its new layer         -  (from here on: forward only)
    resume      NICs back; agent: new generation, fresh entropy    -  the snapshot stands; a failure is reported
    manifest    the snapshot's manifest: clones can start          -
    seal        digests, durable copy, in a process of its own     -

Each step is in the machine's journal before it begins; what a killed process left is settled by `recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .. import trace
from ..drivers.base import Captured, CapturePlan, Handle
from ..errors import LivecloneError, Refused
from ..host import files
from ..ids import check_name, new_id
from ..model.base import now
from ..model.identity import ItemReport
from ..model.machine import Machine, MachineState, MemorySource
from ..model.snapshot import Capture, CaptureMethod, Part, Snapshot, SnapshotState
from ..store.journal import Journal
from . import agent as agents
from . import capacity, identify, parts, seal, wiring
from .context import Context
from .holding import hold_machine

_BY_MEMORY = {
    MemorySource.SHARED_HOT: CaptureMethod.HANDOVER,
    MemorySource.PRIVATE_HOT: CaptureMethod.BACKGROUND,
    MemorySource.PRIVATE_DISK: CaptureMethod.STREAM,
}


@dataclass(frozen=True)
class Request:
    """What is asked for. `name` empty: the machine's name and a number. `method` None: what its memory allows best."""

    machine: str
    name: str = ""
    method: CaptureMethod | None = None
    wait_sealed: bool = False


@dataclass
class _Work:
    """One snapshot being taken."""

    ctx: Context
    journal: Journal
    machine: Machine
    id: str
    name: str
    method: CaptureMethod
    began: float
    folder: Path
    next_disk: Path
    memory: Path
    key: bytes = b""
    items: tuple[ItemReport, ...] = ()
    steps_ms: dict[str, float] = field(default_factory=dict)
    marked: float = 0.0

    def mark(self, step: str) -> None:
        self.steps_ms[step] = round((time.monotonic() - self.marked) * 1000, 3)
        self.marked = time.monotonic()


async def take(ctx: Context, request: Request) -> Snapshot:
    """Take a live snapshot; returns when clones can start from it (or, with `wait_sealed`, when it is sealed).

    Raises:
        Refused: the machine cannot be captured as it is (not running, quarantined, a name that is none).
        Conflict: the name is taken, or another command works on the machine.
        GuestError, TimedOut, HypervisorError, StoreError: a step failed. The source runs on, in every case but
            the death of its own QEMU, and the error says so.
    """
    found = ctx.machines.find(request.machine)
    async with hold_machine(ctx, found.id, f"snapshot of {found.name}") as machine:
        handle = await ctx.driver.open(machine, ctx.layout.machine(machine.id))
        owned = AsyncExitStack()
        owned.push_async_callback(handle.close)
        async with owned:
            await _check_state(handle, machine)
            work = _plan(ctx, machine, request)
            snapshot, handle = await _carry_out(work, handle)
            owned.pop_all()
            owned.push_async_callback(handle.close)
    sealing = seal.start(ctx, snapshot)
    if request.wait_sealed:
        snapshot = await seal.wait(ctx, snapshot, sealing)
    return snapshot


def _plan(ctx: Context, machine: Machine, request: Request) -> _Work:
    """Refuse what cannot be done, before anything is touched; `machine` is what its lock protects."""
    assert machine.memory is not None
    best = _BY_MEMORY[machine.memory.source]
    method = request.method or best
    if method is CaptureMethod.HANDOVER and best is not CaptureMethod.HANDOVER:
        raise Refused(
            f"{machine.name} cannot be captured by handover: its RAM is a snapshot's image already",
            code="no-handover",
            tried="choosing how to capture",
            on=machine.name,
            seen=machine.memory.source.value,
            source_state="running, not touched",
            next_step=f"leave the method out ({best.value}), or restart the machine",
        )
    if method is CaptureMethod.BACKGROUND and machine.memory.source is MemorySource.PRIVATE_DISK:
        raise Refused(
            f"{machine.name} cannot be captured in the background: its RAM maps a file on a disk",
            code="no-background",
            tried="choosing how to capture",
            on=machine.name,
            seen=machine.memory.source.value,
            source_state="running, not touched",
            next_step="leave the method out (stream)",
        )
    if method is not CaptureMethod.HANDOVER:
        capacity.check_hot(ctx, machine.hardware.ram_bytes, f"the memory image of {machine.name}")
    name = request.name or _free_name(ctx, machine)
    check_name(name, "snapshot name")
    taken = [other for other in ctx.snapshots.list() if other.name == name]
    if taken:
        raise Refused(
            f"there is a snapshot named {name} already",
            code="name-taken",
            tried="naming a snapshot",
            on=name,
            seen=f"id {taken[0].id}",
            source_state="running, not touched",
            next_step="choose another name, or remove that one",
        )
    snapshot_id = new_id()
    began = time.monotonic()
    return _Work(
        ctx=ctx,
        journal=ctx.journal(machine.id),
        machine=machine,
        id=snapshot_id,
        name=name,
        method=method,
        began=began,
        marked=began,
        folder=ctx.layout.snapshot(snapshot_id),
        next_disk=ctx.layout.machine(machine.id) / f"disk-{snapshot_id}.qcow2",
        memory=ctx.layout.hot_image(snapshot_id),
    )


async def _check_state(handle: Handle, machine: Machine) -> None:
    state = await handle.state()
    if state is not MachineState.RUNNING:
        raise Refused(
            f"{machine.name} is {state.value}, not running",
            code="not-running",
            tried="a live snapshot",
            on=machine.name,
            seen=state.value,
            source_state=state.value,
            next_step=f"liveclone start {machine.name}",
        )
    if machine.quarantined:
        raise Refused(
            f"{machine.name} is in quarantine: its identity was not verified, so it cannot become a source",
            code="quarantined",
            tried="a live snapshot",
            on=machine.name,
            source_state="running, without a network",
            next_step=f"liveclone remove --force {machine.name}",
        )


async def _carry_out(work: _Work, handle: Handle) -> tuple[Snapshot, Handle]:
    """Do the steps; returns the snapshot and the handle of the process in which the source runs on."""
    ctx, machine, journal = work.ctx, work.machine, work.journal
    async with AsyncExitStack() as undo:
        work.folder.mkdir(mode=0o700)
        undo.callback(files.remove_tree, work.folder)
        journal.begin(
            "snapshot",
            snapshot=work.id,
            name=work.name,
            memory=str(work.memory),
            next_disk=str(work.next_disk),
            method=work.method.value,
        )
        undo.callback(journal.end)
        trace.at("snapshot.begun")
        work.key = ctx.evidence(work.id).make_key()
        try:
            captured = await _until_captured(work, handle, undo)
        except LivecloneError as error:
            error.source_state = error.source_state or "running"
            raise
        # The source may be another process now: whatever fails from here on, its manifest must say so first.
        undo.pop_all()
        changed = _commit(work, captured)
    async with AsyncExitStack() as failed:
        failed.push_async_callback(captured.handle.close)
        trace.at("snapshot.committed")
        problem = await _reconnect(work, captured.handle, changed)
        trace.at("snapshot.reconnected")
        snapshot = _write_manifest(work, captured)
        if problem is not None:
            # The snapshot is good; the journal stays, so that the next command, or `repair`, mends the source.
            problem.source_state = "running, but its network or entropy was not renewed"
            problem.next_step = f"liveclone repair {machine.name}; the snapshot {work.name} can be used"
            raise problem
        journal.end()
        trace.at("snapshot.done")
        failed.pop_all()
    return snapshot, captured.handle


async def _reconnect(work: _Work, handle: Handle, machine: Machine) -> LivecloneError | None:
    """Give the source its network back, then its new generation and entropy; a failure is returned, not raised."""
    ctx = work.ctx
    try:
        async with agents.connect(handle, machine.name) as agent:
            await wiring.reconnect(ctx, handle, machine, agent)
            work.mark("reconnect")
            evidence = await identify.refresh(agent, machine, work.key, work.id)
            ctx.evidence(work.id).record(evidence)
            work.mark("refresh")
    except LivecloneError as error:
        return error
    return None


async def _until_captured(work: _Work, handle: Handle, undo: AsyncExitStack) -> Captured:
    ctx, machine, journal = work.ctx, work.machine, work.journal
    async with agents.connect(handle, machine.name) as agent:
        ctx.progress("preparing the guest", None)
        journal.note("prepare")
        work.items = await identify.observe(agent, work.key, work.id)
        work.mark("prepare")
        trace.at("snapshot.prepared")
    undo.push_async_callback(_undo_prepare, ctx, handle, machine, work.key, work.id)

    async def unplug() -> None:
        journal.note("unplug")
        await wiring.disconnect(handle, machine)
        trace.at("snapshot.unplugged")

    ctx.progress(f"capturing by {work.method.value}", None)
    frozen = work.folder / parts.DISK
    files.hard_link(Path(machine.disk), frozen)
    if work.method is CaptureMethod.HANDOVER:  # the RAM file gets the image's name, as the disk layer got the snapshot's
        files.hard_link(ctx.layout.ram(machine.id), work.memory)
        undo.callback(work.memory.unlink, missing_ok=True)
    undo.callback(work.next_disk.unlink, missing_ok=True)
    parts.make_overlay(work.next_disk, frozen, machine.disk_bytes)
    plan = CapturePlan(
        method=work.method,
        machine=machine,
        folder=ctx.layout.machine(machine.id),
        device_state=work.folder / parts.STATE,
        memory=work.memory,
        frozen_disk=frozen,
        next_disk=work.next_disk,
        note=journal.note,
        before_pause=unplug,
    )
    captured = await handle.capture(plan)
    work.mark("capture")
    return captured


async def _undo_prepare(ctx: Context, handle: Handle, machine: Machine, key: bytes, snapshot_id: str) -> None:
    """Plug the NICs again and tell the guest that it goes on; a silent agent is no reason to leave the NICs out."""

    async def work() -> None:
        with contextlib.suppress(LivecloneError):
            await wiring.reconnect(ctx, handle, machine, None)
        with contextlib.suppress(LivecloneError):
            async with agents.connect(handle, machine.name) as agent:
                await identify.refresh(agent, machine, key, snapshot_id)
                await wiring.configure(machine, agent)

    await asyncio.shield(work())


def _commit(work: _Work, captured: Captured) -> Machine:
    """Write down in which process, on which layer and from which memory the source goes on."""
    ctx, machine = work.ctx, work.machine
    changed: Machine = machine.replace(
        process=captured.handle.process,
        memory=captured.memory,
        disk=str(work.next_disk),
        layers=(work.id, *machine.layers),
        generation=identify.next_generation(machine.generation),
    )
    ctx.machines.save(changed)
    return changed


def _write_manifest(work: _Work, captured: Captured) -> Snapshot:
    """Make the parts immutable, describe them, and so let clones start."""
    ctx, machine = work.ctx, work.machine
    # The snapshot's names for layer and memory are the only ones from now on.
    Path(machine.disk).unlink(missing_ok=True)
    if work.method is CaptureMethod.HANDOVER:
        ctx.layout.ram(machine.id).unlink(missing_ok=True)
    state, disk = work.folder / parts.STATE, work.folder / parts.DISK
    for path in (state, disk, work.memory):
        path.chmod(0o400)
    for path in (state, disk):
        parts.remember_stamp(work.folder, path)
    snapshot = Snapshot(
        id=work.id,
        name=work.name,
        created_at=now(),
        driver=machine.driver,
        state=SnapshotState.READY,
        source=machine.id,
        source_name=machine.name,
        source_generation=machine.generation.uuid,
        hardware=captured.handle.hardware,
        devices=captured.devices,
        ignore_shared=captured.ignore_shared,
        image=machine.image,
        boot=machine.boot,
        network=machine.network,
        memory=Part(file=parts.MEMORY, size_bytes=work.memory.stat().st_size),
        hot=parts.stamp(work.memory),
        device_state=parts.part(state, with_digest=True),
        disk=parts.part(disk, with_digest=False),
        disk_bytes=machine.disk_bytes,
        layers=machine.layers,
        items=work.items,
        capture=Capture(
            method=work.method,
            pause_ns=captured.pause_ns,
            until_clonable_ns=int((time.monotonic() - work.began) * 1e9),
            steps_ms=work.steps_ms | {f"capture.{k}": v for k, v in captured.steps_ms.items()},
        ),
    )
    ctx.snapshots.create(snapshot)
    return snapshot


def _free_name(ctx: Context, machine: Machine) -> str:
    """Return the first of web-1, web-2, ... that no snapshot has."""
    taken = {snapshot.name for snapshot in ctx.snapshots.list()}
    number = 1
    while f"{machine.name[:50]}-{number}" in taken:
        number += 1
    return f"{machine.name[:50]}-{number}"
