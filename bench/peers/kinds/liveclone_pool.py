"""Live clones that take machines which wait in a pool: as many wait as are asked for."""

from __future__ import annotations

import time

from liveclone.engine import refill
from liveclone.host import process
from liveclone.model.snapshot import Snapshot

from ...lab import Lab
from .liveclone import SNAPSHOT, Liveclone, LiveSnapshot

FILLED_DEADLINE_S = 120.0


class LiveclonePool(Liveclone):
    name = "liveclone-pool"
    words = "live clones, from a pool of machines that wait"
    order = 20

    def make_state(self, lab: Lab, taken: Snapshot) -> LiveSnapshot:
        return Pool(lab, taken)


class Pool(LiveSnapshot):
    """A live snapshot with a pool. The first waiting machine belongs to its making."""

    async def finish(self) -> None:
        assert self.make_s is not None
        began = time.monotonic()
        await refill.set_size(self.lab.ctx, SNAPSHOT, 1)
        self.make_s += time.monotonic() - began

    async def prepare(self, count: int) -> None:
        await self._wait_filled()
        await refill.set_size(self.lab.ctx, SNAPSHOT, count)

    async def end(self) -> None:
        await super().end()
        await self._wait_filled()

    async def _wait_filled(self) -> None:
        """Wait for the process that fills the pool again when clones have taken some."""
        for filler in process.find_logging_into(self.lab.ctx.layout.pool(self.snapshot_id)):
            await process.wait(filler, FILLED_DEADLINE_S)


PEER = LiveclonePool
