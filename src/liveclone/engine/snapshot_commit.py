"""Behind the capture there is no way back: the source goes on as what it is now, and the snapshot is described.

    commit      the machine's manifest names its process, its new layer, its memory
    reconnect   NICs, new generation, fresh entropy, secrets back; a failure is told when the snapshot stands
    prove       if scrubbed: the parts are searched for what was taken out
    manifest    the parts are made immutable and described: clones can start

The steps in front of it are in `snapshot`; what a killed process left is settled by `recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

from .. import trace
from ..drivers.base import Captured, Handle
from ..errors import LivecloneError
from ..host import disk_layers
from ..model.base import now
from ..model.disk import DiskPart
from ..model.machine import Machine
from ..model.network import NetworkKind
from ..model.scrub import Scrub
from ..model.snapshot import Capture, CaptureMethod, Part, Snapshot, SnapshotState
from . import agent as agents
from . import death, identify, parts, scrub, seal, search, wiring
from .snapshot_plan import Work

__all__ = ["finish"]


async def finish(work: Work, captured: Captured) -> Snapshot:
    """Let the source go on as what it is now, and describe what was captured.

    Raises:
        LivecloneError: a step failed. It says whether the snapshot stands; the journal stays, and the next command on the
            machine, or `repair`, settles the rest.
    """
    ctx, machine, journal = work.ctx, work.machine, work.journal
    # Whatever fails from here on, the source's manifest must first say in which process it runs.
    async with AsyncExitStack() as failed:
        failed.push_async_callback(captured.handle.close)
        with _forward_only(machine, "running, without its network"):
            changed = _commit(work, captured)
        trace.at("snapshot.committed")
        problem = await _reconnect(work, captured.handle, changed)
        trace.at("snapshot.reconnected")
        with _forward_only(machine, "running"):
            if work.scrub is not None:
                work.proof = await _prove(work)
            snapshot = _write_manifest(work, captured)
        if problem is not None:
            # The snapshot is good; the journal stays, so that the next command, or `repair`, mends the source.
            seal.start(ctx, snapshot)
            work.died = await death.happened(captured.handle)
            problem.source_state = "running, but its network or entropy was not renewed"
            first = f"{problem.next_step}; then " if problem.code == death.SERVICE_GONE else ""
            problem.next_step = (
                f"{first}liveclone repair {machine.name}; the snapshot {work.name} can be used"
            )
            raise problem
        journal.end()
        trace.at("snapshot.done")
        failed.pop_all()
    return snapshot


@contextlib.contextmanager
def _forward_only(machine: Machine, source_state: str) -> Iterator[None]:
    """Say of an error in the block that nothing is undone: the journal stays, and the next command settles it."""
    try:
        yield
    except LivecloneError as error:
        error.source_state = source_state
        error.next_step = f"{error.next_step}; then liveclone repair {machine.name}"
        raise


async def _reconnect(work: Work, handle: Handle, machine: Machine) -> LivecloneError | None:
    """Give the source its network back, then its new generation and entropy; a failure is returned, not raised."""
    ctx = work.ctx
    try:
        async with agents.connect(handle, machine.name) as agent:
            await wiring.reconnect(ctx, handle, machine, agent)
            work.mark("reconnect")
            loading = asyncio.ensure_future(asyncio.to_thread(ctx.host_key.load))
            evidence, work.warnings = await identify.refresh(agent, machine, work.key, work.id)
            await loading
            ctx.evidence(work.id).record(evidence)
            work.mark("refresh")
            work.warnings += await scrub.put_back(ctx, machine, agent)
    except LivecloneError as error:
        return error
    return None


def _commit(work: Work, captured: Captured) -> Machine:
    """Write down in which process, on which layer and from which memory the source goes on."""
    ctx, machine = work.ctx, work.machine
    changed: Machine = machine.replace(
        process=captured.handle.process,
        memory=captured.memory,
        generation=identify.next_generation(machine.generation),
    )
    if not machine.adopted:
        changed = parts.on_layers(
            changed, work.id, {str(disk.present): str(disk.layer) for disk in work.disks}
        )
    ctx.machines.save(changed)
    return changed


async def _prove(work: Work) -> Scrub:
    """Search what has been captured for what was taken out."""
    layers = [layer for disk in work.disks for layer in disk_layers.find_layers(disk.frozen)]
    places = search.Places(work.memory, work.folder / parts.STATE, layers)
    found = await asyncio.to_thread(search.search, places, work.taken.secrets(), work.ctx.progress)
    work.mark("proof")
    return found


def _write_manifest(work: Work, captured: Captured) -> Snapshot:
    """Make the parts immutable, describe them, and so let clones start."""
    ctx, machine = work.ctx, work.machine
    if not ctx.driver_for(machine.driver).shared:
        # The snapshot's names for layers and memory are the only ones from now on.
        for one in work.disks:
            one.present.unlink(missing_ok=True)
    if work.method is CaptureMethod.HANDOVER:
        ctx.layout.ram(machine.id).unlink(missing_ok=True)
    state = work.folder / parts.STATE
    disks = tuple(
        DiskPart(
            target=disk.target,
            part=parts.part(disk.frozen, with_digest=False),
            format=disk.format,
            size_bytes=disk.size_bytes,
        )
        for disk in work.disks
    )
    immutable = (state, *(disk.frozen for disk in work.disks))
    for path in (*immutable, work.memory):
        path.chmod(0o400)
    for path in immutable:
        parts.remember_stamp(work.folder, path)
    for one in work.disks:
        if machine.adopted and one.format == "qcow2":
            parts.remember_below(work.folder, one.frozen)
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
        disk=disks[0].part,
        disk_bytes=machine.disk_bytes,
        disk_format=disks[0].format,
        disks=tuple(disk for disk in disks if disk.target),
        nics=tuple(nic.id for nic in machine.nics),
        addresses=tuple(
            nic.address for nic in machine.nics if nic.kind is NetworkKind.LIBVIRT and nic.address
        ),
        layers=machine.layers,
        items=work.items,
        scan=work.scan,
        scrub=work.proof,
        warnings=work.warnings,
        capture=Capture(
            method=work.method,
            pause_ns=captured.pause_ns,
            until_clonable_ns=int((time.monotonic() - work.began) * 1e9),
            steps_ms=work.steps_ms | {f"capture.{k}": v for k, v in captured.steps_ms.items()},
        ),
    )
    ctx.snapshots.create(snapshot)
    return snapshot
