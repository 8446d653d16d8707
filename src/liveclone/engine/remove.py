"""Remove machines, snapshots and images by name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import Conflict, Corrupt, NotFound, Refused
from ..host import locks, process
from ..ids import is_id
from ..model.machine import Machine
from ..store.layout import MANIFEST
from . import disposal, pool
from .context import BUSY_DEADLINE_S, Context
from .holding import hold_machine


@dataclass(frozen=True)
class RemovedMachine:
    """What a machine was called that is gone."""

    id: str
    name: str


async def remove_machine(ctx: Context, text: str, *, force: bool) -> RemovedMachine:
    """Remove the machine that `text` names; a running one only with `force`, but for one that was adopted: it runs on.

    One whose manifest is damaged is removed, with `force`, when `text` is its id; nobody knows its name.

    Raises:
        Refused: it runs. NotFound: there is none.
        Corrupt: it cannot be looked for, since a manifest is damaged; which one is in `on`.
    """
    try:
        found = ctx.machines.find(text)
    except Corrupt as error:
        if not force or not is_id(text) or error.on != str(ctx.layout.machine(text) / MANIFEST):
            raise
        async with locks.hold_async(ctx.layout.lock(f"machine-{text}"), f"removing {text}", BUSY_DEADLINE_S):
            await disposal.dispose_unknown(ctx, text)
        return RemovedMachine(id=text, name=text)
    try:
        async with hold_machine(ctx, found.id, f"removing {found.name}") as machine:
            if not force and not machine.adopted and process.is_alive(machine.process):
                raise Refused(
                    f"{machine.name} runs",
                    code="still-running",
                    tried="removing a machine",
                    on=machine.name,
                    seen="running",
                    next_step=f"liveclone stop {machine.name}, or remove it with --force",
                )
            await disposal.dispose(ctx, machine)
    except NotFound as error:
        if error.code != "no-machine" or "interrupted remove" not in error.message:
            raise
    return RemovedMachine(found.id, found.name)


@dataclass(frozen=True)
class Removed:
    """A snapshot that was removed, and the machines that were cloned from it and stay."""

    name: str
    run_on: tuple[str, ...]


async def remove_snapshot(ctx: Context, text: str) -> Removed:
    """Remove the snapshot that `text` names; waits for clones that are just starting from it.

    One whose manifest is damaged is removed when `text` is its id.

    Raises:
        NotFound: there is none. Conflict: clones of it keep starting.
        Corrupt: it cannot be looked for, since a manifest is damaged; which one is in `on`.
    """
    try:
        found = ctx.snapshots.find(text)
        snapshot_id, name = found.id, found.name
    except Corrupt as error:
        if not is_id(text) or error.on != str(ctx.layout.snapshot(text) / MANIFEST):
            raise
        snapshot_id = name = text
    path = ctx.layout.lock(f"snapshot-{snapshot_id}")
    async with locks.hold_async(path, f"removing {name}", BUSY_DEADLINE_S):
        hot = ctx.layout.hot_image(snapshot_id)
        with contextlib.suppress(Corrupt):
            snapshot = ctx.snapshots.load(snapshot_id)
            hot = Path(snapshot.hot.path) if snapshot.hot else hot
        run_on = tuple(machine.name for machine in find_machines_of(ctx, snapshot_id))
        # Whoever else is just ending some of them is waited for: without its record nobody finds one any more.
        await pool.drain(ctx, snapshot_id, deadline_s=BUSY_DEADLINE_S)
        disposal.dispose_snapshot(ctx, snapshot_id, hot)
    return Removed(name, run_on)


def find_machines_of(ctx: Context, snapshot_id: str) -> list[Machine]:
    """Return the machines that were cloned from a snapshot and still exist."""
    return [machine for machine in ctx.machines.list() if machine.clone_of == snapshot_id]


async def remove_image(ctx: Context, name: str) -> None:
    """Remove an image that nothing was made from, or nothing that still exists.

    Raises:
        Conflict: machines or snapshots stand on its disk; they are named.
        NotFound: there is none.
    """
    ctx.images.load(name)
    check_image_unused(ctx, name, "removing an image")
    await ctx.images.remove(name)


def check_image_unused(ctx: Context, name: str, tried: str) -> None:
    """See that no machine's and no snapshot's disk stands on an image.

    Raises:
        Conflict: some do (code "image-in-use"); they are named.
    """
    users = [machine.name for machine in ctx.machines.list() if machine.image == name]
    users += [snapshot.name for snapshot in ctx.snapshots.list() if snapshot.image == name]
    if users:
        raise Conflict(
            f"image {name} is in use",
            code="image-in-use",
            tried=tried,
            on=name,
            seen=", ".join(users),
            next_step="remove those first",
        )
