"""Settle operations that died, and sweep up: what `liveclone repair` does, with `seal.start_again`."""

from __future__ import annotations

import contextlib

from ..errors import NotFound
from ..host import locks
from . import disposal, scrub
from .context import Context
from .holding import hold_machine


async def settle(ctx: Context, text: str) -> list[str]:
    """Settle an interrupted operation on one machine, if there is one; returns its name then.

    Raises:
        NotFound: there is no such machine. Conflict: another command works on it and does not end.
    """
    machine = ctx.machines.find(text)
    interrupted = ctx.journal(machine.id).read() is not None or scrub.is_due(ctx, machine)
    with contextlib.suppress(NotFound):  # settling may mean to remove it
        async with hold_machine(ctx, machine.id, f"repair of {machine.name}"):
            pass
    return [machine.name] if interrupted else []


async def settle_all(ctx: Context) -> list[str]:
    """Settle every interrupted operation that nobody is working on; returns the names of the machines concerned."""
    settled = []
    for machine in ctx.machines.list():
        if ctx.journal(machine.id).read() is None and not scrub.is_due(ctx, machine):
            continue
        if locks.is_held(ctx.layout.lock(f"machine-{machine.id}")):
            continue
        with contextlib.suppress(NotFound):
            async with hold_machine(ctx, machine.id, "repair"):
                pass
        settled.append(machine.name)
    disposal.sweep(ctx)
    return settled
