"""pool_host, pool_ready and pool_memory: clones that take a machine which waits, beside those that do not, by turns.

    pool_host      ms, what of a clone the host alone takes (as clone_host), by `way`: `waiting` or `new`
    pool_ready     s, from the request to verified, connected and ready, by `way`
    pool_memory    MiB that one waiting machine has to itself, as private_memory
    pool_fill      ms, from asking for one waiting machine to its being there

By turns, so that whatever else the host does is in both. Nothing fills a pool while a clone is measured: that begins when
one is ready, and the end of the process that does it is waited for before the next.
"""

from __future__ import annotations

import time

from liveclone.engine import clone, pool, refill, remove, snapshot
from liveclone.host import process
from liveclone.model.snapshot import Snapshot
from liveclone.units import MIB

from . import lab as laboratory
from .clones import GUEST_STEPS
from .lab import Lab
from .private import private_bytes

WAITING, NEW = "waiting", "new"
FILLED_DEADLINE_S = 60.0


async def measure(lab: Lab) -> None:
    """Measure at each size."""
    for ram_mib in lab.plan.sizes_mib:
        lab.say(f"pools at {ram_mib} MiB")
        with laboratory.skips(lab, f"pools at {ram_mib} MiB"):
            async with laboratory.open_source(lab, ram_mib) as source:
                taken = await snapshot.take(
                    lab.ctx, snapshot.Request(machine=source.id, name="warm", wait_sealed=True)
                )
                pairs = _Pairs(lab, taken, laboratory.about(source))
                for _ in range(lab.plan.clones):
                    await pairs.measure()


class _Pairs:
    """Clones of one snapshot, with and without a pool."""

    def __init__(self, lab: Lab, taken: Snapshot, dimensions: dict[str, str]) -> None:
        self.lab, self.snapshot_id, self.dimensions = lab, taken.id, dimensions
        self.ram_mib = taken.hardware.ram_bytes // MIB
        self.touched_mib = laboratory.image_mib(taken)

    async def measure(self) -> None:
        ctx = self.lab.ctx
        await refill.set_size(ctx, "warm", 0)
        await self._clone(NEW)
        began = time.monotonic()
        (machine_id,) = (await refill.set_size(ctx, "warm", 1)).waiting
        self._add("pool_fill", "ms", (time.monotonic() - began) * 1000, 0)
        self._weigh(machine_id)
        await self._clone(WAITING)
        for filler in process.find_logging_into(ctx.layout.pool(self.snapshot_id)):
            await process.wait(filler, FILLED_DEADLINE_S)

    def _weigh(self, machine_id: str) -> None:
        ctx = self.lab.ctx
        for one in pool.find(ctx, self.snapshot_id):
            if one.machine.id == machine_id and one.machine.process is not None:
                self._add("pool_memory", "MiB", private_bytes(one.machine.process.pid) / MIB, 0)

    async def _clone(self, way: str) -> None:
        ctx = self.lab.ctx
        (result,) = await clone.start(ctx, clone.Request(snapshot="warm"))
        if result.error is not None:
            raise result.error
        assert result.machine is not None
        assert result.pooled == (way == WAITING)
        host_ms = sum(ms for step, ms in result.steps_ms.items() if step not in GUEST_STEPS)
        self._add("pool_host", "ms", host_ms, 1, way=way)
        self._add("pool_ready", "s", result.ready_s, 1, way=way)
        steps = ", ".join(f"{step} {ms:.1f}" for step, ms in result.steps_ms.items())
        self.lab.say(
            f"    {way}: ready in {result.ready_s:.3f} s, the host's part {host_ms:.1f} ms ({steps})"
        )
        await remove.remove_machine(ctx, result.machine.id, force=True)

    def _add(self, series: str, unit: str, value: float, clones: int, **more: str) -> None:
        self.lab.recorder.add(
            series,
            unit,
            value,
            ram_mib=self.ram_mib,
            touched_mib=self.touched_mib,
            clones=clones,
            **self.dimensions,
            **more,
        )
