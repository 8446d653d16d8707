"""Capture in the background: QEMU write-protects the RAM, the machine runs on, pages are written as it goes.

    stop ── freeze disk ── migrate (background-snapshot) ── first page arrives ── cont ── ... pages ... ── done
    └──────────────────────── the pause: no page is copied ────────────────────┘

QEMU saves the device state and write-protects all RAM (userfaultfd) before it sends the first page, so the first page
is the sign that the machine may run. RAM must be anonymous or tmpfs: write-protection of a private mapping of a
file on a disk is not possible (FACTS.md); `stream` serves there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path

from ... import trace
from ...errors import Interrupted
from ...host import memory
from ..base import Captured, CapturePlan
from ..undo import resume_after
from . import argv, disk, migration
from .connection import Connection
from .intake import NAME, open_intake
from .session import event_ns

UNLIMITED = 1 << 62  # bytes a second; QEMU's default of 128 MiB/s would be the bottleneck


async def capture(handle: Connection, plan: CapturePlan) -> Captured:
    """Carry it out; `plan.memory` is written here. See the module for the order."""
    steps: dict[str, float] = {}
    session = handle.session
    async with AsyncExitStack() as watches, AsyncExitStack() as undo:
        began = time.monotonic()
        abilities = await undo.enter_async_context(AsyncExitStack())
        abilities.push_async_callback(migration.set_abilities, session)
        await migration.set_abilities(session, "background-snapshot")
        await session.call("migrate-set-parameters", max_bandwidth=UNLIMITED)
        below = await disk.top(session)
        node = disk.new_node()
        layer = await undo.enter_async_context(AsyncExitStack())
        layer.push_async_callback(disk.take_off, session, plan.next_disk, node, below)
        await disk.add_layer(session, plan.next_disk, node)
        await disk.sync(plan.frozen_disk)
        # QEMU fills its page tables before it write-protects; done now, that costs next to nothing in the pause.
        await asyncio.to_thread(_populate, handle, plan)
        intake = await undo.enter_async_context(open_intake(session, plan.memory, plan.device_state))
        watch = await watches.enter_async_context(session.watch("MIGRATION"))
        marks = await watches.enter_async_context(session.watch("STOP", "RESUME"))
        await plan.before_pause()
        plan.note("pausing", layer=str(plan.next_disk), node=node, below=below)
        trace.at("background.pausing")
        async with AsyncExitStack() as pause:
            pause.push_async_callback(resume_after, handle)
            paused = time.monotonic()
            await handle.pause()
            trace.at("background.paused")
            await disk.freeze(session, node, below)
            plan.note("frozen", on_next_disk=True)
            trace.at("background.frozen")
            await session.call("migrate", uri=f"fd:{NAME}")
            await asyncio.wait_for(intake.first_page(), plan.deadline_s)
        resumed = time.monotonic()
        trace.at("background.resumed")
        await migration.wait_for_end(watch, session, "streaming the memory", plan.deadline_s)
        await intake.finish()
        trace.at("background.streamed")
        stop = await marks.until(lambda e: e["event"] == "STOP", "the STOP event", 5.0)
        resume = await marks.until(lambda e: e["event"] == "RESUME", "the RESUME event", 5.0)
        with contextlib.suppress(Interrupted):  # what we have is whole, also when QEMU has ended since
            await abilities.aclose()
        layer.pop_all()  # the end: nothing that can fail or be cancelled comes after it
        steps["prepare"] = round((paused - began) * 1000, 3)
        steps["pause"] = round((resumed - paused) * 1000, 3)
        steps["stream"] = round((time.monotonic() - resumed) * 1000, 3)
    return Captured(
        handle=handle,
        memory=plan.present_memory,
        ignore_shared=False,
        devices=argv.devices_of(handle.hardware),
        pause_ns=event_ns(resume) - event_ns(stop),
        steps_ms=steps,
    )


def _populate(handle: Connection, plan: CapturePlan) -> None:
    start, end = memory.find_mapping(handle.process.pid, Path(plan.present_memory.path))
    memory.populate(handle.process.pid, start, end)
