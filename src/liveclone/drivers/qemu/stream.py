"""Capture by QEMU's ordinary live migration into a pipe: works whatever the RAM is mapped from.

    migrate ── pages, while the machine runs ── pre-switchover (stopped) ── freeze disk ── continue ── devices ── cont

The pause holds the last dirty pages and the device state; QEMU aims at `PAUSE_TARGET_MS` for it. A machine that dirties
memory faster than we write is stopped when the deadline has passed, so the capture always ends.
"""

from __future__ import annotations

import contextlib
import time
from contextlib import AsyncExitStack
from typing import Any

from ... import trace
from ...errors import Interrupted, TimedOut
from ..base import Captured, CapturePlan
from ..undo import resume_after
from . import argv, disk, migration
from .background import UNLIMITED
from .connection import Connection
from .intake import NAME, open_intake
from .session import event_ns

PAUSE_TARGET_MS = 20
CONVERGE_S = 30.0


async def capture(handle: Connection, plan: CapturePlan) -> Captured:
    """Carry it out; `plan.memory` is written here. See the module for the order."""
    session = handle.session
    began = time.monotonic()
    async with AsyncExitStack() as watches, AsyncExitStack() as undo:
        abilities = await undo.enter_async_context(AsyncExitStack())
        abilities.push_async_callback(migration.set_abilities, session)
        await migration.set_abilities(session, "pause-before-switchover")
        await session.call("migrate-set-parameters", max_bandwidth=UNLIMITED, downtime_limit=PAUSE_TARGET_MS)
        below = await disk.top(session)
        node = disk.new_node()
        layer = await undo.enter_async_context(AsyncExitStack())
        layer.push_async_callback(disk.take_off, session, plan.next_disk, node, below)
        await disk.add_layer(session, plan.next_disk, node)
        await disk.sync(plan.frozen_disk)
        intake = await undo.enter_async_context(open_intake(session, plan.memory, plan.device_state))
        watch = await watches.enter_async_context(session.watch("MIGRATION"))
        marks = await watches.enter_async_context(session.watch("STOP", "RESUME"))
        await plan.before_pause()
        plan.note("pausing", layer=str(plan.next_disk), node=node, below=below)
        trace.at("stream.pausing")
        async with AsyncExitStack() as pause:
            pause.push_async_callback(resume_after, handle)
            pause.push_async_callback(_cancel, handle)
            await session.call("migrate", uri=f"fd:{NAME}")
            try:
                event = await watch.until(_is_switchover, "copying the memory", CONVERGE_S)
            except TimedOut:
                await handle.pause()
                event = await watch.until(_is_switchover, "copying the last of the memory", plan.deadline_s)
            if migration.has_ended(event):
                raise await migration.failure(session, "copying the memory")
            trace.at("stream.paused")
            paused = time.monotonic()
            await disk.freeze(session, node, below)
            plan.note("frozen", on_next_disk=True)
            trace.at("stream.frozen")
            await session.call("migrate-continue", state="pre-switchover")
            await migration.wait_for_end(watch, session, "saving device state", plan.deadline_s)
        await intake.finish()
        trace.at("stream.resumed")
        stop = await marks.until(lambda e: e["event"] == "STOP", "the STOP event", 5.0)
        resume = await marks.until(lambda e: e["event"] == "RESUME", "the RESUME event", 5.0)
        with contextlib.suppress(Interrupted):  # what we have is whole, also when QEMU has ended since
            await abilities.aclose()
        layer.pop_all()  # the end: nothing that can fail or be cancelled comes after it
    return Captured(
        handle=handle,
        memory=plan.present_memory,
        ignore_shared=False,
        devices=argv.devices_of(handle.hardware),
        pause_ns=event_ns(resume) - event_ns(stop),
        steps_ms={
            "prepare": round((paused - began) * 1000, 3),
            "all": round((time.monotonic() - began) * 1000, 3),
        },
    )


def _is_switchover(event: dict[str, Any]) -> bool:
    return event["data"]["status"] == "pre-switchover" or migration.has_ended(event)


async def _cancel(handle: Connection) -> None:
    """Give the migration up if it still runs; a completed one is left alone."""
    if (await handle.session.call("query-migrate")).get("status") in migration.UNDER_WAY:
        await handle.session.call("migrate_cancel")
