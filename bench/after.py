"""after_*: what a snapshot does to a source that works, second by second; and what the host did meanwhile.

    after_rate         1/s (http), MiB/s (memory): what was done in a second
    after_p99          ms, how long 99 of 100 pieces of work that began in it took at most (seconds.py)
    after_faults       1/s, pages that QEMU touched in that second and did not have yet
    after_user         ms of a processor that QEMU had for itself in that second
    after_kernel       ms of a processor that the kernel spent for QEMU in that second
    after_translated   MiB of translated code that it added in that second, under emulation

    after_before       the median of `after_rate` before the snapshot was asked for
    after_worst        % of that, in the worst second since
    after_recovered    s, from the request to the first second after the worst in which it is 95 % of that again
    after_lost         s of work that was not done until then

`load` is `http` (a host's client, one request after another over one connection) or `memory` (a process in the guest that
writes a word to each page of all its memory, round after round). `method` as for source_pause: by turns on one machine, a
handover first, which is all that a boot is good for. `second` counts from the pause; the snapshot was asked for a little
earlier, and the durable copy is made while the source works on, as always.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Mapping

from liveclone.drivers.qemu import launch
from liveclone.engine import remove, snapshot
from liveclone.host import machine as host
from liveclone.model.machine import Machine
from liveclone.model.network import Port
from liveclone.model.snapshot import Capture, CaptureMethod
from liveclone.units import MIB

from . import lab as laboratory
from . import qemu_work, seconds, watching
from .guest_load import HTTP_PORT, PAGE, ROW
from .lab import Lab

HTTP, MEMORY = "http", "memory"
METHODS = (CaptureMethod.HANDOVER, CaptureMethod.BACKGROUND, CaptureMethod.STREAM)
BEFORE_S, AFTER_S = 10, 20
# What each sign of a load's stands for, and its unit.
WORTH: Mapping[str, tuple[float, str]] = {HTTP: (1, "1/s"), MEMORY: (ROW * PAGE / MIB, "MiB/s")}
# The steps of a snapshot until its source stands still, by their names in the manifest.
_UNTIL_PAUSED = ("scan", "prepare", "capture.prepare", "capture.before_pause")


async def measure(lab: Lab) -> None:
    """Measure at each size, with each load, on so many boots."""
    for ram_mib in lab.plan.dips_mib:
        for load in (HTTP, MEMORY):
            lab.say(f"after a snapshot, {load}, {ram_mib} MiB")
            with laboratory.skips(lab, f"{ram_mib} MiB"):
                for _ in range(lab.plan.dips):
                    await _boot_and_measure(lab, ram_mib, load)


async def _boot_and_measure(lab: Lab, ram_mib: int, load: str) -> None:
    ports = [Port(host_port=0, guest_port=HTTP_PORT)] if load == HTTP else []
    async with laboratory.open_source(lab, ram_mib, what=load, ports=ports) as source:
        for method in METHODS:
            if method is not CaptureMethod.HANDOVER and host.memory().available_bytes < 2 * ram_mib * MIB:
                lab.say(f"  [yellow]left out: {method.value}: no room for another image[/]")
                continue
            await _Run(lab, source, load, method).measure()


class _Run:
    """One snapshot of a machine that works."""

    def __init__(self, lab: Lab, source: Machine, load: str, method: CaptureMethod) -> None:
        self.lab, self.source, self.load, self.method = lab, source, load, method

    async def measure(self) -> None:
        ctx = self.lab.ctx
        async with (
            watching.open_watch(*self._arguments()) as watch,
            qemu_work.open_sampler(ctx.layout.home) as sampler,
        ):
            began = time.monotonic()
            await asyncio.sleep(BEFORE_S)
            requested = time.monotonic()
            taken = await snapshot.take(ctx, snapshot.Request(machine=self.source.id, method=self.method))
            paused = requested + until_paused_s(taken.capture)
            await asyncio.sleep(max(0.0, paused + AFTER_S + qemu_work.EVERY_S - time.monotonic()))
            works = await watch.end()
        await laboratory.end_sealing(self.lab)
        shown = range(math.ceil(max(began, works[0][0]) - paused), AFTER_S)
        self._note(works, sampler, paused, math.floor(requested - paused), shown)
        if self.method is not CaptureMethod.HANDOVER:
            await remove.remove_snapshot(ctx, taken.id)

    def _arguments(self) -> tuple[str, ...]:
        if self.load == HTTP:
            (port,) = self.lab.ctx.machines.load(self.source.id).ports
            return HTTP, port.host_ip, str(port.host_port)
        return "console", str(self.lab.ctx.layout.machine(self.source.id) / launch.CONSOLE_LOG)

    def _note(
        self,
        works: list[seconds.Work],
        sampler: qemu_work.Sampler,
        paused: float,
        requested: int,
        shown: range,
    ) -> None:
        worth, unit = WORTH[self.load]
        calm = statistics.median(end - begin for begin, end in works if begin < paused + requested)
        rates = {second: n * worth for second, n in seconds.count(works, paused, shown).items()}
        p99 = seconds.p99(works, paused, shown, calm)
        for series, of, by_second, scale in (
            ("after_rate", unit, rates, 1.0),
            ("after_p99", "ms", p99, 1e3),
            ("after_faults", "1/s", seconds.spread(sampler.faults, paused, shown), 1.0),
            ("after_user", "ms", seconds.spread(sampler.user_s, paused, shown), 1e3),
            ("after_kernel", "ms", seconds.spread(sampler.kernel_s, paused, shown), 1e3),
            ("after_translated", "MiB", seconds.spread(sampler.code_bytes, paused, shown), 1 / MIB),
        ):
            for second, value in by_second.items():
                self._add(series, of, value * scale, second=second)
        dip = seconds.measure_dip(rates, requested)
        for series, of, value in (
            ("after_before", unit, dip.before),
            ("after_worst", "%", 100 * dip.worst / dip.before),
            ("after_recovered", "s", dip.recovered_s),
            ("after_lost", "s", dip.lost_s),
        ):
            self._add(series, of, value)
        slowest = max((value for second, value in p99.items() if second >= requested), default=0.0)
        self.lab.say(
            f"    {self.method.value}: {dip.before:.0f} {unit} before, {100 * dip.worst / dip.before:.0f} % in the worst "
            f"second (p99 {slowest * 1e3:.0f} ms), as before again after {dip.recovered_s:.0f} s, lost {dip.lost_s:.1f} s"
        )

    def _add(self, series: str, unit: str, value: float, **more: int) -> None:
        self.lab.recorder.add(
            series,
            unit,
            value,
            ram_mib=self.source.hardware.ram_bytes // MIB,
            touched_mib=laboratory.touched_mib(self.lab.ctx.machines.load(self.source.id)),
            clones=0,
            load=self.load,
            method=self.method.value,
            **laboratory.about(self.source),
            **more,
        )


def until_paused_s(capture: Capture) -> float:
    """Return how long after the request the source stood still; its steps are in the manifest."""
    return sum(capture.steps_ms.get(step, 0.0) for step in _UNTIL_PAUSED) / 1e3
