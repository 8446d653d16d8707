"""A machine's process ends under an operation: tell that from other failures, and say what is left and what to do.

What an operation sees of it is a connection that ended, and that may have been another process's. So the machine itself
is asked. A QEMU that was killed closes its connections first and is gone a moment later: that is waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..drivers.base import Handle
from ..errors import Interrupted, LivecloneError, NotFound
from ..host import process
from ..model.machine import Machine
from . import recover
from .context import Context

# A process with much memory takes 0.1 s a GiB or so to give it back.
ENDING_S = 5.0
SERVICE_GONE = "libvirt-gone"  # not the machine has ended, but who is asked about it


async def happened(handle: Handle) -> bool:
    """Tell whether the machine's process has ended, or is ending."""
    try:
        await handle.state()
    except Interrupted as error:
        if error.code != SERVICE_GONE:  # then its processes run on
            await process.wait(handle.process, ENDING_S)
    except LivecloneError:  # it does not answer; that is not this
        pass
    return not process.is_alive(handle.process)


@contextlib.contextmanager
def explained(*, state: str, next_step: str) -> Iterator[None]:
    """Let an error in the block that a machine has gone say what is left, and what helps where it cannot be looked at."""
    try:
        yield
    except LivecloneError as error:
        lost = isinstance(error, Interrupted) and error.code != SERVICE_GONE
        if lost or error.code in ("guest-gone", "not-running"):
            error.source_state, error.next_step = state, next_step
        raise


async def settle_snapshot(ctx: Context, machine: Machine, error: LivecloneError) -> None:
    """Settle a snapshot whose source has died, and let `error` say so; the caller holds the machine.

    Where even that fails, for want of room say, the journal stays, and to start the machine settles it first.
    """
    entry = ctx.journal(machine.id).read()
    with contextlib.suppress(LivecloneError):
        await recover.settle(ctx, ctx.machines.load(machine.id))
    error.source_state = "stopped; its disk is as the guest last wrote it"
    error.next_step = f"liveclone start {machine.name}"
    taken = entry.facts["snapshot"] if entry is not None else ""
    if away := await _find_away(ctx, machine):
        layers = [layer for layer in (entry.facts.get("layers", ()) if entry else ()) if Path(layer).exists()]
        error.seen = "; ".join(part for part in (error.seen, away.message) if part)
        error.source_state = " ".join([away.source_state, *(f"(on the layer {layer})" for layer in layers)])
        error.next_step = away.next_step
    for snapshot in ctx.snapshots.list():
        if snapshot.id == taken:
            error.next_step += f"; the snapshot {snapshot.name} can be used"


async def _find_away(ctx: Context, machine: Machine) -> NotFound | None:
    """Return why a machine that others may move is not here any more; None if it is here, or nobody knows."""
    driver = ctx.driver_for(machine.driver)
    with contextlib.suppress(LivecloneError):
        try:
            if driver.shared:
                await driver.look(ctx.layout.machine(machine.id))
        except NotFound as error:
            return error
    return None
