"""clones_per_second and private_memory: many clones of one snapshot at once.

    clones_per_second   clones asked for at once, divided by the time until the last one is ready
    private_memory      MiB that one idle clone has to itself: Private_Clean + Private_Dirty of smaps_rollup (proc(5)) of the
                        processes that `process` names: its `qemu`; or the `forwarder` of its published ports, which a
                        clone without published ports does not have

What a clone shares with others (the memory image, QEMU's program) is in neither. Clones count as idle when over a second
they use less than a tenth of a processor each (timers alone take 4 % under emulation) and leave the host a fifth of its own:
until then they still make RSA host keys. After `IDLE_DEADLINE_S` they are taken as they are.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from liveclone.engine import clone, remove, snapshot
from liveclone.host import machine as host
from liveclone.model.machine import Machine, ProcessRef
from liveclone.model.network import NetworkKind, Port
from liveclone.units import KIB, MIB

from . import lab as laboratory
from .lab import Lab

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
        machines, lasted_s = await self._clone(clone.Request(snapshot="warm", count=count))
        try:
            self._add("clones_per_second", "1/s", count / lasted_s, count)
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
        machines, _ = await self._clone(clone.Request(snapshot="warm", ports=[port]))
        try:
            await self._weigh(machines, [machine.port_process for machine in machines], "forwarder")
        finally:
            await self._remove(machines)

    async def _clone(self, request: clone.Request) -> tuple[list[Machine], float]:
        began = time.monotonic()
        results = await clone.start(self.lab.ctx, request)
        lasted_s = time.monotonic() - began
        for result in results:
            if result.error is not None:
                raise result.error
        return [result.machine for result in results if result.machine is not None], lasted_s

    async def _weigh(
        self, machines: Sequence[Machine], processes: Sequence[ProcessRef | None], name: str
    ) -> None:
        waited_s = await wait_idle([machine.process.pid for machine in machines if machine.process])
        weights = [private_bytes(process.pid) / MIB for process in processes if process]
        for weight in weights:
            self._add("private_memory", "MiB", weight, len(machines), process=name)
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


def private_bytes(pid: int) -> int:
    """Return what only this process has in memory."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(
        int(kib) * KIB for kib in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.MULTILINE)
    )


def private_ram_bytes(pid: int, ram_bytes: int) -> int:
    """Return what only this process has of its guest's RAM: of what it maps in that size or larger, and does not run."""
    found, is_ram = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p ", line):
            is_ram = int(mapping[2], 16) - int(mapping[1], 16) >= ram_bytes
        elif re.match(r"[0-9a-f]+-", line):
            is_ram = False
        elif is_ram and (private := re.match(r"Private_(?:Clean|Dirty): +(\d+) kB", line)):
            found += int(private[1]) * KIB
    return found


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
