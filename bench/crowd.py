"""clones_per_second, crowd_ready, private_memory, private_part: many clones of one snapshot at once.

    clones_per_second   clones asked for at once, divided by the time until the last one is ready
    crowd_ready         s from the request until each of them is ready
    private_memory      MiB that one idle clone has to itself: Private_Clean + Private_Dirty of smaps_rollup (proc(5)) of the
                        processes that `process` names: its `qemu`; or the `forwarder` of its published ports, which a
                        clone without published ports does not have
    private_part        the same of its QEMU by `part`, and its page tables: see private

Clones count as idle when over a second
they use less than a tenth of a processor each (timers alone take 4 % under emulation) and leave the host a fifth of its own:
until then they still make RSA host keys. After `IDLE_DEADLINE_S` they are taken as they are.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from liveclone.engine import clone, remove, snapshot
from liveclone.host import machine as host
from liveclone.model.machine import Machine, ProcessRef
from liveclone.model.network import NetworkKind, Port
from liveclone.units import MIB

from . import lab as laboratory
from .lab import Lab
from .private import private_bytes, private_parts

IDLE_SHARE = 0.1  # of one processor, each
BUSY_SHARE = 0.8  # of all processors, together
IDLE_DEADLINE_S = 120.0
SSH = 22


async def measure(lab: Lab) -> None:
    """Measure with each number of clones."""
    plan = lab.plan
    lab.say(f"many clones at once, {plan.crowd_mib} MiB each")
    with laboratory.skips(lab, "many clones"):
        async with laboratory.open_source(lab, plan.crowd_mib) as source:
            taken = await snapshot.take(
                lab.ctx, snapshot.Request(machine=source.id, name="warm", wait_sealed=True)
            )
            crowd = _Crowd(lab, laboratory.about(source), laboratory.image_mib(taken))
            for count in plan.crowds:
                with laboratory.skips(lab, f"{count} clones"):
                    for number in range(plan.rounds):
                        await crowd.start(count, weigh=number == plan.rounds - 1)
            await crowd.weigh_forwarder()


class _Crowd:
    """Clones of one snapshot."""

    def __init__(self, lab: Lab, dimensions: dict[str, str], touched_mib: float) -> None:
        self.lab, self.dimensions, self.touched_mib = lab, dimensions, touched_mib

    async def start(self, count: int, *, weigh: bool) -> None:
        """Start `count` clones at once, and when they are idle note their memory."""
        machines, lasted_s, ready_s = await self._clone(clone.Request(snapshot="warm", count=count))
        try:
            self._add("clones_per_second", "1/s", count / lasted_s, count)
            for one_s in ready_s:
                self._add("crowd_ready", "s", one_s, count)
            self.lab.say(f"    {count} clones ready in {lasted_s:.2f} s: {count / lasted_s:.2f} a second")
            if weigh:
                await self._weigh(machines, [machine.process for machine in machines], "qemu")
        finally:
            await self._remove(machines)

    async def weigh_forwarder(self) -> None:
        """Note what publishing a port costs: a process of its own, on a bridge."""
        if self.lab.ctx.settings.network is not NetworkKind.BRIDGE:
            return
        port = Port(host_port=0, guest_port=SSH)
        machines, _, _ = await self._clone(clone.Request(snapshot="warm", ports=[port]))
        try:
            await self._weigh(machines, [machine.port_process for machine in machines], "forwarder")
        finally:
            await self._remove(machines)

    async def _clone(self, request: clone.Request) -> tuple[list[Machine], float, list[float]]:
        began = time.monotonic()
        results = await clone.start(self.lab.ctx, request)
        lasted_s = time.monotonic() - began
        for result in results:
            if result.error is not None:
                raise result.error
        made = [result.machine for result in results if result.machine is not None]
        return made, lasted_s, [result.ready_s for result in results]

    async def _weigh(
        self, machines: Sequence[Machine], processes: Sequence[ProcessRef | None], name: str
    ) -> None:
        waited_s = await wait_idle([machine.process.pid for machine in machines if machine.process])
        weights = [private_bytes(process.pid) / MIB for process in processes if process]
        for weight in weights:
            self._add("private_memory", "MiB", weight, len(machines), process=name)
        for process in processes if name == "qemu" else ():
            if process is not None:
                for part, size in private_parts(process.pid, self.lab.plan.crowd_mib * MIB).items():
                    self._add("private_part", "MiB", size / MIB, len(machines), part=part)
        average = sum(weights) / len(weights)
        self.lab.say(f"      idle after {waited_s:.0f} s; {average:.1f} MiB private in each {name}")

    def _add(self, series: str, unit: str, value: float, count: int, **more: str) -> None:
        self.lab.recorder.add(
            series,
            unit,
            value,
            ram_mib=self.lab.plan.crowd_mib,
            touched_mib=self.touched_mib,
            clones=count,
            **self.dimensions,
            **more,
        )

    async def _remove(self, machines: Sequence[Machine]) -> None:
        for machine in machines:
            await remove.remove_machine(self.lab.ctx, machine.id, force=True)


async def wait_idle(pids: Sequence[int]) -> float:
    """Wait until these processes have little to do, or too long; returns the seconds waited."""
    enough = min(IDLE_SHARE * len(pids), BUSY_SHARE * host.cpus())
    began = time.monotonic()
    used = _cpu_seconds(pids)
    while time.monotonic() - began < IDLE_DEADLINE_S:
        await asyncio.sleep(1.0)
        now = _cpu_seconds(pids)
        if now - used < enough:
            break
        used = now
    return time.monotonic() - began


def _cpu_seconds(pids: Sequence[int]) -> float:
    # Fields 14 (utime) and 15 (stime) of /proc/PID/stat, counted behind the name in parentheses: proc(5).
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
