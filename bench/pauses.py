"""source_pause and guest_gap: how long a machine stands still for its snapshot.

    source_pause   ms, from QEMU's STOP event to its RESUME event, by QEMU's time stamps
    guest_gap      ms, the longest time for which a process in the guest did not run, from the request to the end (ticks.py)
    guest_gap_idle ms, the same over the same time without a snapshot

`method` is a dimension: `handover` for the first snapshot of a machine from cold, `background` for later ones of the same
machine, `stream` where neither can be (asked for here). All with the guest's memory filled.
"""

from __future__ import annotations

import asyncio

from liveclone.drivers.qemu import launch
from liveclone.engine import remove, snapshot
from liveclone.host import machine as host
from liveclone.model.machine import Machine
from liveclone.model.snapshot import CaptureMethod
from liveclone.units import MIB

from . import lab as laboratory
from . import ticks
from .lab import Lab

CALM_S = 2.0  # a snapshot takes about that long from request to return, under emulation


async def measure(lab: Lab) -> None:
    """Measure at each size: so many boots with one handover each, and on the last of them the later snapshots."""
    plan = lab.plan
    for ram_mib in plan.sizes_mib:
        lab.say(f"source's pause at {ram_mib} MiB")
        with laboratory.skips(lab, f"{ram_mib} MiB"):
            for number in range(plan.handovers):
                await _boot_and_take(lab, ram_mib, last=number == plan.handovers - 1)


async def _boot_and_take(lab: Lab, ram_mib: int, *, last: bool) -> None:
    async with laboratory.open_source(lab, ram_mib) as source:
        await laboratory.load(lab, source, "tick")
        log = lab.ctx.layout.machine(source.id) / launch.CONSOLE_LOG
        async with ticks.open_watch(log) as watch:
            await asyncio.sleep(CALM_S)
            calm = await watch.take()
            lab.recorder.add(
                "guest_gap_idle",
                "ms",
                calm.longest_s * 1e3,
                ram_mib=ram_mib,
                touched_mib=laboratory.touched_mib(source),
                clones=0,
                **laboratory.about(source),
            )
            await _take(lab, source, ram_mib, watch, CaptureMethod.HANDOVER)
            if not last:
                return
            later = [CaptureMethod.BACKGROUND] * lab.plan.later + [CaptureMethod.STREAM] * lab.plan.streams
            for method in later:
                if host.memory().available_bytes < 2 * ram_mib * MIB:
                    lab.say(
                        f"  [yellow]left out: {method.value} at {ram_mib} MiB: no room for another image[/]"
                    )
                    return
                await _take(lab, source, ram_mib, watch, method)


async def _take(lab: Lab, source: Machine, ram_mib: int, watch: ticks.Watch, method: CaptureMethod) -> None:
    await watch.take()
    taken = await snapshot.take(lab.ctx, snapshot.Request(machine=source.id, method=method))
    seen = await watch.take()
    await laboratory.end_sealing(lab)
    pause_ms, gap_ms = taken.capture.pause_ns / 1e6, seen.longest_s * 1e3
    dimensions = {**laboratory.about(source), "method": method.value}
    touched_mib = laboratory.image_mib(taken)
    for series, value in (("source_pause", pause_ms), ("guest_gap", gap_ms)):
        lab.recorder.add(
            series, "ms", value, ram_mib=ram_mib, touched_mib=touched_mib, clones=0, **dimensions
        )
    lab.say(
        f"    {method.value}: paused {pause_ms:.1f} ms, gap {gap_ms:.1f} ms, "
        f"clones could start after {taken.capture.until_clonable_ns / 1e9:.2f} s"
    )
    if method is not CaptureMethod.HANDOVER:
        await remove.remove_snapshot(lab.ctx, taken.id)
