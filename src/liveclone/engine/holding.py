"""Hold a machine alone for an operation; what a dead operation left on it is settled first."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from ..host import locks
from ..model.machine import Machine
from . import adopt, recover, scrub
from .context import BUSY_DEADLINE_S, Context


@contextlib.asynccontextmanager
async def hold_machine(ctx: Context, machine_id: str, what: str) -> AsyncIterator[Machine]:
    """Hold a machine alone in the block and give its manifest as it is then.

    Raises:
        Conflict: another command works on it and does not end. NotFound: it is gone by now.
    """
    async with locks.hold_async(ctx.layout.lock(f"machine-{machine_id}"), what, BUSY_DEADLINE_S):
        machine = ctx.machines.load(machine_id)
        if ctx.journal(machine_id).read() is not None:
            machine = await recover.settle(ctx, machine)
        elif scrub.is_due(ctx, machine):
            await recover.bring_back(ctx, machine)
        yield await adopt.refresh(ctx, machine)
