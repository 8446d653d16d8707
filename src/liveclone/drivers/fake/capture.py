"""The three ways to capture, each with its undo beside it; order, notes and trace points are those of drivers/qemu.

handover     a successor maps the source's own RAM file; device state goes from one to the other
background   RAM is write-protected in the pause and saved while the machine runs on
stream       RAM is copied while the machine runs; what it wrote meanwhile is copied in the pause
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path

from ... import trace
from ...host import process
from ...model.machine import Memory, MemorySource
from ..base import Captured, CapturePlan
from ..undo import finish, resume_after
from . import launch, layers
from .connection import FakeConnection

# What the device state describes, in order.
DEVICES = ("fake-processor", "fake-disk,id=disk0", "fake-port,name=agent", "fake-port,name=exec")


async def by_handover(old: FakeConnection, plan: CapturePlan) -> Captured:
    """Let another process go on with the machine. The point of no return is the moment when that one runs."""
    began = time.monotonic()
    memory = Memory(path=str(plan.memory), source=MemorySource.PRIVATE_HOT)
    async with AsyncExitStack() as undo:
        new = await launch.launch(old.name, plan.folder, old.hardware, plan.next_disk, memory, incoming=True)
        undo.callback(launch.discard, new.run)
        undo.push_async_callback(process.end, new.process)
        undo.push_async_callback(new.wire.close)
        plan.note("successor", successor=new.process, run=new.run.name, memory=memory.path)
        trace.at("handover.successor")
        await plan.before_pause()
        plan.note("pausing")
        trace.at("handover.pausing")
        undo.push_async_callback(_resume_shielded, old)
        undo.push_async_callback(
            process.end, new.process
        )  # before that: once it has the state it has the disk
        paused = await old.wire.call("pause")
        trace.at("handover.paused")
        await old.wire.call("save", plan.deadline_s, device_state=plan.device_state)
        trace.at("handover.saved")
        await new.wire.call("load", plan.deadline_s, device_state=plan.device_state)
        trace.at("handover.loaded")
        # One note before, none after: whoever finds "committing" asks the successor itself.
        plan.note("committing", on_next_disk=True)
        trace.at("handover.committing")
        resumed = await new.wire.call("resume")
        undo.pop_all()  # the point of no return
        trace.at("handover.resumed")
        await finish(_retire(old, plan, new.run))
    return Captured(
        handle=old.successor(new.process, new.wire),
        memory=memory,
        ignore_shared=True,
        devices=DEVICES,
        pause_ns=resumed["at_ns"] - paused["at_ns"],
        steps_ms=_since(began),
    )


async def _retire(old: FakeConnection, plan: CapturePlan, run: Path) -> None:
    """End the old process for good, then let the new one's sockets be the machine's."""
    await old.close()
    await process.end(old.process)
    trace.at("handover.retired")
    launch.adopt(plan.folder, run)


async def in_background(handle: FakeConnection, plan: CapturePlan) -> Captured:
    """Keep RAM as it is at an instant, let the machine go on, and save what was kept."""
    began = time.monotonic()
    wire = handle.wire
    below = (await wire.call("status"))["disk"]
    chain = layers.read_chain_on(plan.next_disk, Path(below))
    async with AsyncExitStack() as undo:
        undo.callback(_remove_parts, plan)
        await plan.before_pause()
        undo.push_async_callback(_take_layer_off, handle, plan)
        plan.note("pausing", node=str(plan.next_disk), below=below)
        trace.at("background.pausing")
        undo.push_async_callback(wire.call, "cancel")
        async with AsyncExitStack() as pause:
            pause.push_async_callback(_resume_shielded, handle)
            paused = await wire.call("pause")
            trace.at("background.paused")
            await wire.call("freeze", chain=chain)
            plan.note("frozen", on_next_disk=True)
            trace.at("background.frozen")
            await wire.call("protect", plan.deadline_s, device_state=plan.device_state, memory=plan.memory)
            resumed = await wire.call("resume")
            pause.pop_all()
        trace.at("background.resumed")
        await wire.call("drain", plan.deadline_s)
        trace.at("background.streamed")
        undo.pop_all()
    return _in_place(handle, plan, resumed["at_ns"] - paused["at_ns"], began)


async def by_stream(handle: FakeConnection, plan: CapturePlan) -> Captured:
    """Copy RAM while the machine runs, and the rest of it in the pause."""
    began = time.monotonic()
    wire = handle.wire
    below = (await wire.call("status"))["disk"]
    chain = layers.read_chain_on(plan.next_disk, Path(below))
    async with AsyncExitStack() as undo:
        undo.callback(_remove_parts, plan)
        await plan.before_pause()
        undo.push_async_callback(_take_layer_off, handle, plan)
        plan.note("pausing", node=str(plan.next_disk), below=below)
        trace.at("stream.pausing")
        undo.push_async_callback(wire.call, "cancel")
        await wire.call("copy", plan.deadline_s, memory=plan.memory)
        async with AsyncExitStack() as pause:
            pause.push_async_callback(_resume_shielded, handle)
            paused = await wire.call("pause")
            trace.at("stream.paused")
            await wire.call("freeze", chain=chain)
            plan.note("frozen", on_next_disk=True)
            trace.at("stream.frozen")
            await wire.call("finish", plan.deadline_s, device_state=plan.device_state)
            resumed = await wire.call("resume")
            pause.pop_all()
        trace.at("stream.resumed")
        undo.pop_all()
    return _in_place(handle, plan, resumed["at_ns"] - paused["at_ns"], began)


def _in_place(handle: FakeConnection, plan: CapturePlan, pause_ns: int, began: float) -> Captured:
    return Captured(
        handle=handle,
        memory=plan.present_memory,
        ignore_shared=False,
        devices=DEVICES,
        pause_ns=pause_ns,
        steps_ms=_since(began),
    )


def _remove_parts(plan: CapturePlan) -> None:
    for path in (plan.memory, plan.device_state):
        with contextlib.suppress(OSError):  # its folder may be what was wrong
            path.unlink(missing_ok=True)


async def _take_layer_off(handle: FakeConnection, plan: CapturePlan) -> None:
    """Undo the freeze, if it was carried out: a call that was cancelled may have been. The layer's file goes."""
    if (await handle.wire.call("status"))["disk"] == str(plan.next_disk):
        await handle.wire.call("thaw")
    plan.next_disk.unlink(missing_ok=True)


async def _resume_shielded(handle: FakeConnection) -> None:
    await asyncio.shield(resume_after(handle))


def _since(began: float) -> dict[str, float]:
    return {"all": round((time.monotonic() - began) * 1000, 3)}
