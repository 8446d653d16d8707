"""Capture by an external snapshot of libvirt's: memory and disks at one instant, while the domain runs.

    NICs off ── libvirt: memory into a save image, pause, disk onto its next layer, run ── split the save image

One call does the middle part, and libvirt itself undoes it when it fails. The save image is on tmpfs, beside the memory
image that it becomes. When we die in the call libvirtd carries it out all the same, so `recovery` looks at the domain.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from ... import trace
from ...errors import HypervisorError, LivecloneError, Unsupported
from ...formats import domain_new, domain_rewrite, domain_xml
from ...model.snapshot import CaptureMethod
from ..base import Captured, CapturePlan
from . import disk, nics, nvram, split
from .connection import MIGRATION, Connection
from .link import Event, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA  # the domain's own list of snapshots is its owner's
)
_PAUSE_TARGET_MS = 20
_CONVERGE_S, _LONGEST_PAUSE_MS = 30.0, 2000
_LAYERS_ARE_THERE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
_LIFECYCLE = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
_ITERATION = (
    libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION
)  # of our own snapshot too: QEMU migrates into a file
_EVER_S = 86400.0
_SUSPENDED, _RESUMED = libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_RESUMED


async def capture(connection: Connection, plan: CapturePlan) -> Captured:
    """Carry it out; see the module for the order, and `drivers.base.Handle.capture` for what holds afterwards."""
    if plan.method is not CaptureMethod.STREAM:
        raise Unsupported(
            f"libvirt cannot capture by {plan.method.value}",
            code="no-method",
            tried="choosing how to capture",
            on=connection.name,
            source_state="running, not touched",
            next_step=f"leave the method out ({CaptureMethod.STREAM.value})",
        )
    began = time.monotonic()
    save = plan.memory.with_name(f"{plan.memory.name}.save")
    async with AsyncExitStack() as undo:
        undo.callback(_forget, save)
        await undo.enter_async_context(_stay_here(connection))
        layers = [one.layer for one in plan.disks] or [plan.next_disk]
        off = await undo.enter_async_context(AsyncExitStack())
        off.push_async_callback(_shielded_take_off, connection, layers)
        domain = await connection.read()
        plugged = {nics.id_of(nic): nic for nic in domain.nics}
        unwritten = nvram.stamp(connection, domain)
        await plan.before_pause()
        domain = await connection.read()
        xml = _render(connection, domain, plan, save)
        plan.note("pausing", layers=[str(layer) for layer in layers], save=str(save))
        trace.at("stream.pausing")
        await undo.enter_async_context(_short_pause(connection))
        watch = await undo.enter_async_context(connection.link.watch(connection.domain, _LIFECYCLE))
        pausing = asyncio.create_task(_see_pause(watch, plan.deadline_s))
        undo.callback(pausing.cancel)
        ours = not plan.machine.adopted
        await _snapshot(connection, xml, _FLAGS | _LAYERS_ARE_THERE if ours else _FLAGS)
        plan.note("frozen", on_next_disk=ours)
        trace.at("stream.frozen")
        pause_s = await pausing
        variables = nvram.read_unwritten(connection, unwritten) if unwritten else None
        trace.at("stream.resumed")
        resumed = time.monotonic()
        await plan.after_pause()
        gone = {nics.id_of(nic) for nic in domain.nics}
        unplugged = [nic.xml for nic_id, nic in plugged.items() if nic_id not in gone]

        def describe(saved: str) -> str:
            return domain_new.add_nics(saved, unplugged)

        def check(stream: bytes) -> None:
            if variables is not None:
                nvram.check(connection.name, stream, variables)

        await _finish(asyncio.to_thread(split.split, save, plan.memory, plan.device_state, describe, check))
        for one in () if ours else plan.disks:
            await _finish(asyncio.to_thread(disk.copy, one, plan.tell))
        if ours or plan.keep_overlay:
            off.pop_all()  # the end: nothing that can fail or be cancelled comes after it
    return Captured(
        handle=connection,
        memory=plan.present_memory,
        ignore_shared=False,
        devices=devices_of(domain),
        pause_ns=int(pause_s * 1e9),
        steps_ms={
            "snapshot": round((resumed - began) * 1000, 3),
            "parts": round((time.monotonic() - resumed) * 1000, 3),
        },
    )


def devices_of(domain: domain_xml.Domain) -> tuple[str, ...]:
    """Return what tells the domain's devices apart from another's, for people; libvirt checks the rest itself."""
    disks = [f"disk {one.target} on {one.bus}" for one in domain.disks]
    return (domain.machine_type, *disks, *(f"channel {one.name}" for one in domain.channels))


def _render(connection: Connection, domain: domain_xml.Domain, plan: CapturePlan, save: Path) -> str:
    """Return what libvirt is to take: the memory, and each disk that the domain writes."""
    wanted = {one.present: one.layer for one in plan.disks} or {Path(plan.machine.disk): plan.next_disk}
    layers = {disk.find_target(domain, path): str(layer) for path, layer in wanted.items()}
    if "" in layers:
        raise HypervisorError(
            f"the disk of {connection.name} is another than liveclone knows",
            code="other-disk",
            tried="capturing its disk",
            on=connection.name,
            seen=", ".join(one.path for one in domain.disks) or "no disk",
            source_state="running, not touched",
            next_step=f"virsh domblklist {connection.name}; if somebody else takes snapshots of it, commit those first",
        )
    others = [one.target for one in domain.disks if one.target not in layers]
    return domain_rewrite.render_snapshot(layers, str(save), others)


async def _snapshot(connection: Connection, xml: str, flags: int) -> None:
    """Let libvirt take the snapshot. One that is cancelled is aborted, and waited for."""
    call = asyncio.ensure_future(
        connection.call("taking a snapshot", connection.domain.snapshotCreateXML, xml, flags)
    )
    try:
        await asyncio.shield(call)
    except asyncio.CancelledError:
        with contextlib.suppress(libvirt.libvirtError):
            await asyncio.to_thread(connection.domain.abortJob)
        await asyncio.wait({call})
        call.exception()
        raise


@contextlib.asynccontextmanager
async def _short_pause(connection: Connection) -> AsyncIterator[None]:
    """Ask QEMU in the block to stop the guest for the last few pages only; afterwards it aims at what it did before.

    A guest that changes memory faster than QEMU writes it would then never be stopped: after a while it may be for longer.
    """
    domain = connection.domain
    before = await connection.call("asking for its downtime", domain.migrateGetMaxDowntime)

    async def give_in() -> None:
        await asyncio.sleep(_CONVERGE_S)
        with contextlib.suppress(LivecloneError):
            await connection.call("allowing a longer pause", domain.migrateSetMaxDowntime, _LONGEST_PAUSE_MS)

    await connection.call("asking for a short pause", domain.migrateSetMaxDowntime, _PAUSE_TARGET_MS)
    waiting = asyncio.create_task(give_in())
    try:
        yield
    finally:
        waiting.cancel()
        with contextlib.suppress(LivecloneError):  # its QEMU has ended
            await asyncio.shield(
                connection.call("setting its downtime back", domain.migrateSetMaxDowntime, before)
            )


@contextlib.asynccontextmanager
async def _stay_here(connection: Connection) -> AsyncIterator[None]:
    """Cancel a migration that somebody begins in the block: the domain would go without its NICs, and on our layer.

    libvirt lets it wait while the snapshot is taken, and begins it then. It refuses it by itself while a layer is committed.
    Whoever asked for it is told that it was cancelled. One that is too quick for us: nothing of the domain is touched then.
    """

    async def cancel(watch: Watch) -> None:
        while True:
            # Of the first pass: those that come later, of our own snapshot, may fall into the pause.
            await watch.until(lambda event: event.facts[0] == 1, "a migration", _EVER_S)
            if await connection.busy_with() == MIGRATION:
                with contextlib.suppress(libvirt.libvirtError):  # it has just ended
                    await asyncio.to_thread(connection.domain.abortJob)

    async with connection.link.watch(connection.domain, _ITERATION) as watch:
        watching = asyncio.create_task(cancel(watch))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)  # its QEMU has ended, say: others tell


async def _see_pause(watch: Watch, deadline_s: float) -> float:
    """Return for how long the domain stood still, in seconds, as its events tell."""

    def is_(what: int) -> Callable[[Event], bool]:
        return lambda event: event.facts[0] == what

    suspended = await watch.until(is_(_SUSPENDED), "pausing", deadline_s)
    trace.at("stream.paused")
    resumed = await watch.until(is_(_RESUMED), "going on", deadline_s)
    return resumed.at - suspended.at


async def _finish(work: Awaitable[None]) -> None:
    """Wait for a thread, also when cancelled: what it writes is removed by itself only when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        task.exception()
        raise


async def _shielded_take_off(connection: Connection, layers: list[Path]) -> None:
    """Take each of them off, whatever becomes of the others."""
    async with AsyncExitStack() as each:
        for layer in layers:
            each.push_async_callback(_shielded, connection, layer)


async def _shielded(connection: Connection, layer: Path) -> None:
    await asyncio.shield(disk.take_off(connection, layer))


def _forget(save: Path) -> None:
    with contextlib.suppress(OSError):
        save.unlink(missing_ok=True)
