"""Share a guest's exec port, which serves one connection at a time, and find the machine again when it moves.

Whoever uses the port does so for a moment, then looks whether somebody waits. Two lock files make a turnstile, since a
single one would mostly be taken again by whoever has just let go of it:

    exec-ID.next   held while waiting for the port: whoever is next
    exec-ID        held while connected to it

A handover replaces the process behind every port: then the connection ends, and `find_again` has the machine as it is
after whoever works on it is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from ..errors import GuestError, LivecloneError
from ..host import locks, process
from ..model.machine import Machine
from .agent import Agent
from .context import BUSY_DEADLINE_S, Context

PORT = "exec"


@contextlib.asynccontextmanager
async def take(ctx: Context, machine: Machine, deadline_s: float) -> AsyncIterator[Agent]:
    """Wait for our turn, connect to the guest's exec port, and be connected in the block.

    Raises:
        Conflict: our turn did not come in time. NotFound: the machine does not run (code "not-running").
    """
    what = f"a command in {machine.name}"
    async with AsyncExitStack() as stack:
        async with locks.hold_async(_next(ctx, machine), what, deadline_s):
            path = ctx.layout.lock(f"{PORT}-{machine.id}")
            await stack.enter_async_context(locks.hold_async(path, what, deadline_s))
        reader, writer = await ctx.driver_for(machine.driver).connect_port(
            machine, ctx.layout.machine(machine.id), PORT
        )
        agent = Agent(machine.name, reader, writer)
        stack.push_async_callback(agent.close)
        yield agent


def is_wanted(ctx: Context, machine: Machine) -> bool:
    """Tell whether somebody waits for the port that we use."""
    return locks.is_held(_next(ctx, machine))


def _next(ctx: Context, machine: Machine) -> Path:
    return ctx.layout.lock(f"{PORT}-{machine.id}.next")


async def find_again(ctx: Context, machine: Machine, error: LivecloneError) -> Machine:
    """Return a machine whose connection ended with `error`, when whoever works on it is done: maybe in another process.

    Raises:
        GuestError: it has stopped.
    """
    path = ctx.layout.lock(f"machine-{machine.id}")
    async with locks.hold_async(path, f"finding {machine.name} again", BUSY_DEADLINE_S, shared=True):
        pass
    found = ctx.machines.load(machine.id)
    if process.is_alive(found.process):
        return found
    raise GuestError(
        f"{machine.name} stopped meanwhile",
        code="guest-gone",
        tried=error.tried,
        on=machine.name,
        seen=error.seen,
        next_step=f"liveclone logs {machine.name}",
    ) from error
