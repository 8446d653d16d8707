"""Make machines that wait for clones of a snapshot, until there are as many as its pool is to have.

By the command that asks for the pool, and, whenever clones have taken some, in the background:

    python -m liveclone.engine.refill HOME HOT SNAPSHOT-ID       log: snapshots/ID/pool/log

One after the other, one process at a time for a snapshot (lock `pool-ID`). Behind it one more may wait (`refill-ID`), for
what clones take after the first has looked; that one looks when its turn comes, so a third has nothing to wait for. Where
memory is short it stops: clones that are asked for come first (pool.with_room).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path

from .. import trace
from ..errors import Conflict, LivecloneError, NotFound
from ..host import locks, process
from ..ids import new_id
from ..model.snapshot import Snapshot
from ..model.waiting import Waiting
from . import capacity, disposal, parts, pool, restore
from .context import Context, open_context
from .settings import read as read_settings

LOG = "log"
DEADLINE_S = 600.0


async def set_size(ctx: Context, text: str, size: int) -> pool.Pool:
    """Let `size` machines wait for clones of a snapshot from now on; returns when they do.

    Raises:
        Refused: not a number of machines, or not enough memory for all; those that were made stay, and the size is kept.
        NotFound: there is no such snapshot. Corrupt: its parts do not match its manifest.
        Unsupported: its hypervisor has no pools.
    """
    found = ctx.snapshots.find(text)
    async with ctx.hold_snapshot(found.id, f"setting the pool of {found.name}", shared=True) as snapshot:
        pool.write_size(ctx, snapshot, size)
    await fill(ctx, found.id)
    return pool.summarize(ctx, found)


async def drain(ctx: Context, text: str) -> int:
    """End the machines that wait for clones of a snapshot, and return how many; the pool's size stays.

    Raises:
        NotFound: there is no such snapshot. Conflict: its pool is being filled, and that does not end.
    """
    snapshot = ctx.snapshots.find(text)
    async with _filling(ctx, snapshot.id, f"draining the pool of {snapshot.name}"):
        return await pool.drain(ctx, snapshot.id)


def start(ctx: Context, snapshot: Snapshot) -> None:
    """Begin to fill the snapshot's pool in the background, if there is one and machines are missing in it.

    Fails silently: the clones are there, and whoever starts the next ones tries again.
    """
    size = pool.read_size(ctx, snapshot.id)
    if len(pool.find(ctx, snapshot.id)) >= size or locks.is_held(_queue(ctx, snapshot.id)):
        return
    settings = ctx.settings
    argv = [sys.executable, "-m", __name__, str(settings.home), str(settings.hot), snapshot.id]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with contextlib.suppress(LivecloneError, OSError):
        process.start(argv, cwd=Path("/"), log=ctx.layout.pool(snapshot.id) / LOG, env=environment)


async def fill(ctx: Context, snapshot_id: str) -> int:
    """Make the machines that are missing in a snapshot's pool, and return how many that were; any surplus is ended.

    Raises:
        Refused: not enough memory for the next one. Corrupt, Unsupported, HypervisorError: it could not be made.
            Those that were made stay. NotFound: the snapshot was removed.
    """
    async with _filling(ctx, snapshot_id, "filling a pool"):
        return await _fill(ctx, snapshot_id)


async def fill_in_turn(ctx: Context, snapshot_id: str) -> None:
    """As `fill`, unless somebody waits to do that already."""
    async with AsyncExitStack() as turn:
        async with locks.hold_async(_queue(ctx, snapshot_id), "waiting to fill a pool"):
            await turn.enter_async_context(_filling(ctx, snapshot_id, "filling a pool"))
        await _fill(ctx, snapshot_id)


def _filling(ctx: Context, snapshot_id: str, what: str) -> AbstractAsyncContextManager[None]:
    return locks.hold_async(ctx.layout.lock(f"pool-{snapshot_id}"), what, DEADLINE_S)


def _queue(ctx: Context, snapshot_id: str) -> Path:
    return ctx.layout.lock(f"refill-{snapshot_id}")


async def _fill(ctx: Context, snapshot_id: str) -> int:
    made = 0
    await pool.settle(ctx, [snapshot_id])
    while True:
        # Each on its own, so that whoever wants to remove the snapshot waits for one only.
        async with ctx.hold_snapshot(snapshot_id, "filling its pool", shared=True) as snapshot:
            size, waiting = pool.read_size(ctx, snapshot_id), len(pool.find(ctx, snapshot_id))
            if waiting >= size:
                # Here, where nobody makes any: the size may have become smaller meanwhile.
                await pool.drain(ctx, snapshot_id, keep=size)
                return made
            ctx.progress(f"filling the pool of {snapshot.name}", waiting / size)
            capacity.check_clones(ctx, snapshot, 1)
            await _make(ctx, snapshot)
            made += 1


async def _make(ctx: Context, snapshot: Snapshot) -> None:
    """Make one waiting machine; on failure nothing is left of it."""
    memory = await asyncio.to_thread(parts.check, ctx, snapshot)
    machine_id = new_id()
    machine = restore.plan_machine(ctx, snapshot, machine_id, f"{snapshot.name[:40]}-pool-{machine_id}")
    waiting = Waiting(machine=machine.replace(memory=memory), image=parts.stamp(Path(memory.path)))
    async with AsyncExitStack() as undo:
        lock = ctx.layout.lock(f"machine-{machine_id}")
        await undo.enter_async_context(locks.hold_async(lock, f"waiting for clones of {snapshot.name}"))
        keep = AsyncExitStack()
        keep.callback(pool.forget, ctx, snapshot.id, machine_id)
        keep.push_async_callback(_undo, ctx, machine_id)
        await undo.enter_async_context(keep)
        disposal.begin_machine(ctx, machine_id, "pool", snapshot=snapshot.id)
        trace.at("pool.begun")
        pool.remember(ctx, waiting)
        trace.at("pool.known")
        restore.make_disks(ctx, snapshot, machine)
        handle = await restore.start(ctx, snapshot, machine, memory)
        await handle.close()
        trace.at("pool.loaded")
        pool.remember(ctx, waiting.replace(machine=waiting.machine.replace(process=handle.process)))
        trace.at("pool.recorded")
        ctx.journal(machine_id).end()
        keep.pop_all()
    trace.at("pool.ready")


async def _undo(ctx: Context, machine_id: str) -> None:
    """Shielded, so that an impatient user leaves nothing behind."""
    await asyncio.shield(disposal.dispose_unmade(ctx, machine_id))


def main(arguments: list[str]) -> int:
    """Fill a pool, as a process of its own.

    It does not give way as sealing does: the machines it starts would inherit that, and run so as clones.
    """
    home, hot, snapshot_id = arguments
    try:
        ctx = open_context(replace(read_settings(), home=Path(home), hot=Path(hot)))
        try:
            asyncio.run(fill_in_turn(ctx, snapshot_id))
        finally:
            disposal.sweep_locks(ctx)  # ours could not go while we held them
    except (Conflict, NotFound):  # somebody else is at it; the snapshot is gone
        return 0
    except LivecloneError as error:
        sys.stderr.write(f"{error.code}: {error.message} ({error.seen})\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
