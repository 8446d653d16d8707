"""Capture by handover: the source's own RAM file becomes the memory image, so nothing is copied.

    old QEMU    running ──stop── save device state ─────────────────────────── (paused, can be resumed) ── killed
    new QEMU      start, wait for state ................ load ── cont ── running, RAM mapped private on the same file
                                                              │
                                                              └ point of no return: from here the file must not be
                                                                written, and the old process must never run again

The new process is started and waiting before the pause begins. Its disk is `next_disk`, an overlay on the layer that
the old one wrote last; both never write at once, since the old one gave up its images when its state was saved.
Undo before the point of no return: kill the new one, then resume the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path

from ... import trace
from ...errors import LivecloneError
from ...host import process
from ...model.machine import Memory, MemorySource
from ..base import Captured, CapturePlan
from ..undo import finish, resume_after
from . import argv, disk, launch, migration
from .connection import Connection
from .session import Watch, event_ns

CAPABILITY = "x-ignore-shared"


async def capture(old: Connection, plan: CapturePlan) -> Captured:
    """Carry out the handover; see the module. `plan.memory` is a second name of the source's RAM file."""
    steps: dict[str, float] = {}
    clock = time.monotonic()

    def done(step: str) -> None:
        nonlocal clock
        now = time.monotonic()
        steps[step] = round((now - clock) * 1000, 3)
        clock = now

    memory = Memory(path=str(plan.memory), source=MemorySource.PRIVATE_HOT)
    async with AsyncExitStack() as watches, AsyncExitStack() as undo:
        new = await launch.launch(
            name=old.name,
            folder=plan.folder,
            hardware=old.hardware,
            boot=plan.machine.boot,
            disk=plan.next_disk,
            memory=memory,
            read_only_ram=True,
            incoming=True,
        )
        undo.callback(launch.discard, new.run)
        undo.push_async_callback(process.end, new.process)
        undo.push_async_callback(new.session.close)
        plan.note("successor", successor=new.process, run=new.run.name)
        trace.at("handover.successor")
        successor = old.successor(new.process, new.session)
        undo.push_async_callback(successor.close)
        await successor.connect_early(new.run)
        await migration.set_abilities(old.session, CAPABILITY)
        await migration.set_abilities(new.session, CAPABILITY)
        # What the guest has written and not flushed would be flushed inside the pause; do most of it before.
        await disk.sync(plan.frozen_disk)
        watch_old = await watches.enter_async_context(old.session.watch("STOP"))
        watch_new = await watches.enter_async_context(new.session.watch("RESUME"))
        done("prepare")
        await plan.before_pause()
        done("before_pause")

        plan.note("pausing")
        trace.at("handover.pausing")
        undo.push_async_callback(_resume_old, old)
        # Before that: whether it runs may be unknown (a lost answer), and while it does the disk is its own.
        undo.push_async_callback(process.end, new.process)
        clock = time.monotonic()
        await old.pause()
        done("stop")
        trace.at("handover.paused")
        await migration.save_state(old.session, plan.device_state, plan.deadline_s)
        done("save")
        trace.at("handover.saved")
        await migration.load_state(new.session, plan.device_state, plan.deadline_s)
        done("load")
        trace.at("handover.loaded")
        # Not a note before and after, but one before: whoever finds "committing" asks the successor itself.
        plan.note("committing", on_next_disk=True)
        trace.at("handover.committing")
        await successor.resume()
        done("resume")
        undo.pop_all()  # the point of no return
        trace.at("handover.resumed")
        pause_ns = await finish(_retire(old, plan, new.run, watch_old, watch_new))
        done("retire")
    return Captured(
        handle=successor,
        memory=memory,
        ignore_shared=True,
        devices=argv.devices_of(successor.hardware),
        pause_ns=pause_ns,
        steps_ms=steps,
    )


async def _retire(old: Connection, plan: CapturePlan, run: Path, watch_old: Watch, watch_new: Watch) -> int:
    """End the old process for good, let the new one's sockets be the machine's; return how long it stood still (ns).

    Nothing here may fail or be cut short, for whatever the caller would undo then is what the new process runs on. So there
    is no note either: a disk that is full would refuse it.
    """
    pause_ns = 0
    with contextlib.suppress(LivecloneError):  # a figure that is not known is no reason
        stopped = await watch_old.until(lambda e: e["event"] == "STOP", "the STOP event", 5.0)
        resumed = await watch_new.until(lambda e: e["event"] == "RESUME", "the RESUME event", 5.0)
        pause_ns = event_ns(resumed) - event_ns(stopped)
    with contextlib.suppress(Exception):
        await old.close()
    await process.end(old.process)
    trace.at("handover.retired")
    launch.adopt(plan.folder, run)
    return pause_ns


async def _resume_old(old: Connection) -> None:
    """Let the old process run. Were we cancelled while it saves, it would stop again when it has done so."""

    async def work() -> None:
        with contextlib.suppress(LivecloneError):
            await migration.give_up(old.session)
        await resume_after(old)

    await asyncio.shield(work())
