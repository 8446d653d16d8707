"""Waiting machines: a clone that takes one saves the start of its process and the loading of its device state.

    snapshots/ID/pool/size             how many are to wait
    snapshots/ID/pool/MACHINE.json     one that waits (model/waiting.py); its folder is machines/MACHINE, with no manifest
    snapshots/ID/pool/log              what filling in the background said (engine/refill.py)

    made   folder, journal, record, disk layer, process, device state; then the record names the process, the journal ends
    taken  journal, manifest, then the record goes: from the manifest on it is a clone under way, as any other

It is no machine to the user: without a manifest nobody lists or finds it. It has no NIC, and its guest has not run. Whoever
makes, takes or ends one holds its lock `machine-ID`, so that one alone gets it. A record whose lock is free, and whose
journal is there or whose process is not, was left by somebody's death: whoever comes next ends what there is of it.

Its device state is loaded when it is made: to load it when it is taken would cost 5 to 12 ms then. Its QEMU has the name
SNAPSHOT-pool-MACHINE for good (`-name` cannot be changed), so `ps` tells a clone from the pool by its id.

A hypervisor whose machines others list and start too (libvirt) has no pool: a waiting domain would be theirs to start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from ..drivers.base import Handle
from ..errors import Conflict, Corrupt, LivecloneError, Refused, Unsupported
from ..host import files, locks, process
from ..model.base import Value
from ..model.machine import Machine, Memory
from ..model.snapshot import Snapshot
from ..model.waiting import Waiting, WaitingState
from ..store import manifests
from ..store.layout import MANIFEST
from . import disposal, parts
from .context import Context

MOST = 100  # a waiting machine costs 18 to 28 MiB (docs/pool.md) and a process
SIZE = "size"


class Pool(Value, frozen=True, kw_only=True):
    """A line of `pool list`. `waiting` has the state of each waiting machine, by its id."""

    snapshot: str
    id: str
    size: int  # how many are to wait
    waiting: dict[str, WaitingState]

    @property
    def ready(self) -> int:
        return sum(state is WaitingState.READY for state in self.waiting.values())


def read_size(ctx: Context, snapshot_id: str) -> int:
    """Return how many machines are to wait for clones of a snapshot; 0 where nobody asked for any."""
    try:
        return int((ctx.layout.pool(snapshot_id) / SIZE).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def write_size(ctx: Context, snapshot: Snapshot, size: int) -> None:
    """Record how many machines are to wait; the caller holds the snapshot. Neither makes nor ends any.

    Raises:
        Refused: not a number of machines. Unsupported: its hypervisor has no pools. Nothing was changed.
    """
    if not 0 <= size <= MOST:
        raise Refused(
            f"a pool of {size} machines cannot be kept",
            code="bad-size",
            tried="setting the size of a pool",
            on=snapshot.name,
            seen=str(size),
            next_step=f"ask for 0 (no pool) to {MOST}",
        )
    if size and ctx.driver_for(snapshot.driver).shared:
        raise Unsupported(
            f"clones by {snapshot.driver} have no pool",
            code="no-pool",
            tried="setting the size of a pool",
            on=snapshot.name,
            seen=f"whoever uses {snapshot.driver} would see the waiting machines, and could start them",
            source_state="not touched",
            next_step="take the snapshot of a machine that the qemu driver runs",
        )
    where = ctx.layout.pool(snapshot.id)
    where.mkdir(mode=0o700, exist_ok=True)
    files.write_atomic(where / SIZE, f"{size}\n".encode())


def list_pools(ctx: Context) -> list[Pool]:
    """Return the pools that were asked for, and what is left of others."""
    pools = [summarize(ctx, snapshot) for snapshot in ctx.snapshots.list()]
    return [pool for pool in pools if pool.size or pool.waiting]


def summarize(ctx: Context, snapshot: Snapshot) -> Pool:
    """Return the pool of a snapshot as it is now."""
    found = {waiting.machine.id: observe(ctx, waiting) for waiting in find(ctx, snapshot.id)}
    return Pool(snapshot=snapshot.name, id=snapshot.id, size=read_size(ctx, snapshot.id), waiting=found)


def find(ctx: Context, snapshot_id: str) -> list[Waiting]:
    """Return the records of a snapshot's waiting machines, the oldest first. One that cannot be read is left out."""
    found = []
    for path in ctx.layout.pool(snapshot_id).glob("*.json"):
        with contextlib.suppress(FileNotFoundError, Corrupt):
            found.append(manifests.parse(path.read_bytes(), Waiting, str(path)))
    return sorted(found, key=lambda waiting: waiting.machine.created_at)


def observe(ctx: Context, waiting: Waiting) -> WaitingState:
    """Return how a waiting machine is now."""
    machine_id = waiting.machine.id
    if locks.is_held(ctx.layout.lock(f"machine-{machine_id}")):
        return WaitingState.TAKEN if waiting.machine.process is not None else WaitingState.MAKING
    return WaitingState.READY if _waits(ctx, machine_id, waiting.machine) else WaitingState.LOST


async def take(
    ctx: Context, snapshot: Snapshot, memory: Memory, name: str, undo: AsyncExitStack
) -> tuple[Machine, Handle] | None:
    """Return a waiting machine and a handle to it, or None; the caller holds the snapshot, and has checked its parts.

    It stays one that waits until the caller has written its manifest and says `forget`. One that cannot be used (its
    process ended, the memory image is another than was mapped) is thrown away.

    Args:
        memory: where clones of the snapshot map their memory from now.
        name: of the clone, for messages.
        undo: gets the machine's lock and the handle.
    """
    for waiting in find(ctx, snapshot.id):
        machine = waiting.machine
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(_held(ctx, machine.id, f"starting {name}"))
            except Conflict:  # somebody else's
                continue
            if not ctx.layout.waiting(snapshot.id, machine.id).exists():  # ... and by now a clone
                continue
            usable = _waits(ctx, machine.id, machine) and _fits(waiting, memory)
            handle = await _open(ctx, machine.replace(name=name)) if usable else None
            if handle is None:
                await _throw_away(ctx, snapshot.id, machine.id)
                continue
            held.push_async_callback(handle.close)
            await undo.enter_async_context(held.pop_all())
            return machine, handle
    return None


def forget(ctx: Context, snapshot_id: str, machine_id: str) -> None:
    """Let a machine be one that waits no more: its manifest has been written, or it is gone."""
    ctx.layout.waiting(snapshot_id, machine_id).unlink(missing_ok=True)


def remember(ctx: Context, waiting: Waiting) -> None:
    """Write the record of a waiting machine; the caller holds it."""
    path = ctx.layout.waiting(waiting.machine.clone_of, waiting.machine.id)
    files.write_atomic(path, manifests.render(waiting), durable=False)


async def drain(ctx: Context, snapshot_id: str, *, keep: int = 0, deadline_s: float = 0.0) -> int:
    """End a snapshot's waiting machines but the `keep` oldest, and return how many.

    Those that somebody is making, taking or ending are left to them, if they do not let go of them within `deadline_s`.
    """
    ended = 0
    settled = await settle(ctx, [snapshot_id])
    for waiting in find(ctx, snapshot_id)[keep:]:
        with contextlib.suppress(Conflict):
            async with _held(ctx, waiting.machine.id, "draining a pool", deadline_s):
                if ctx.layout.waiting(snapshot_id, waiting.machine.id).exists():
                    await _throw_away(ctx, snapshot_id, waiting.machine.id)
                    ended += 1
    return ended + settled


async def drain_all(ctx: Context, *, but: str = "") -> int:
    """End all waiting machines, but those of the snapshot `but`; return how many."""
    return sum([await drain(ctx, one) for one in _snapshot_ids(ctx) if one != but])


async def with_room(ctx: Context, check: Callable[[], None], *, last: str = "") -> None:
    """Let `check` see whether there is memory; if it refuses, waiting machines go first, those of snapshot `last` last.

    Raises:
        Refused: there is too little without any pool too.
    """
    for but in (last, ""):
        try:
            check()
            return
        except Refused as error:
            if error.code != "no-memory":
                raise
            await drain_all(ctx, but=but)
    check()


async def settle(ctx: Context, snapshot_ids: Iterable[str] | None = None) -> int:
    """End what is left of waiting machines whose maker, taker or process died; return how many there were."""
    ended = 0
    for snapshot_id in _snapshot_ids(ctx) if snapshot_ids is None else snapshot_ids:
        for path in ctx.layout.pool(snapshot_id).glob("*.json"):
            with contextlib.suppress(Conflict):
                async with _held(ctx, path.stem, "settling a pool"):
                    if path.exists() and not _is_good(ctx, path):
                        await _throw_away(ctx, snapshot_id, path.stem)
                        ended += 1
    return ended


def _snapshot_ids(ctx: Context) -> list[str]:
    return [path.parent.name for path in ctx.layout.snapshots.glob("*/pool")]


def _held(
    ctx: Context, machine_id: str, what: str, deadline_s: float = 0.0
) -> contextlib.AbstractAsyncContextManager[None]:
    """Hold a waiting machine, if nobody else does."""
    return locks.hold_async(ctx.layout.lock(f"machine-{machine_id}"), what, deadline_s)


def _is_good(ctx: Context, path: Path) -> bool:
    try:
        waiting = manifests.parse(path.read_bytes(), Waiting, str(path))
    except Corrupt:
        return False
    return _waits(ctx, path.stem, waiting.machine)


def _waits(ctx: Context, machine_id: str, machine: Machine) -> bool:
    """Tell whether it is whole and nobody's, given that nobody works on it."""
    made = (ctx.layout.machine(machine_id) / MANIFEST).exists()
    return not made and process.is_alive(machine.process) and ctx.journal(machine_id).read() is None


def _fits(waiting: Waiting, memory: Memory) -> bool:
    """Tell whether it has mapped the very image that clones map now, and that was checked."""
    try:
        return waiting.machine.memory == memory and waiting.image == parts.stamp(Path(memory.path))
    except OSError:
        return False


async def _open(ctx: Context, machine: Machine) -> Handle | None:
    with contextlib.suppress(LivecloneError):  # it has just died, or does not answer
        return await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
    return None


async def _throw_away(ctx: Context, snapshot_id: str, machine_id: str) -> None:
    """End a waiting machine that the caller holds. One that has a manifest is a clone, whose journal says the rest."""
    if not (ctx.layout.machine(machine_id) / MANIFEST).exists():
        await disposal.dispose_unmade(ctx, machine_id)
    forget(ctx, snapshot_id, machine_id)
