"""Settle every operation that died, and sweep up: what `liveclone repair` does."""

from __future__ import annotations

import contextlib

from ..errors import NotFound
from ..host import locks
from . import disposal
from .context import Context
from .holding import hold_machine


async def settle_all(ctx: Context) -> list[str]:
    """Settle every interrupted operation that nobody is working on; returns the names of the machines concerned."""
    settled = []
    for machine in ctx.machines.list():
        if ctx.journal(machine.id).read() is None:
            continue
        if locks.is_held(ctx.layout.lock(f"machine-{machine.id}")):
            continue
        with contextlib.suppress(NotFound):
            async with hold_machine(ctx, machine.id, "repair"):
                pass
        settled.append(machine.name)
    disposal.sweep(ctx)
    return settled
