"""Seal a snapshot: a durable copy of its memory image, the digest of every part, all on disk, then the word `sealed`.

Runs in a process of its own, so that the command that took the snapshot can end and clones can start meanwhile:

    python -m liveclone.engine.seal HOME HOT SNAPSHOT-ID       log: snapshots/ID/seal.log

A seal that died is begun anew by `repair` (`start_again`) or `snapshot seal` (`finish`). Until a snapshot is sealed it does
not survive a reboot of the host, and says so.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from .. import trace
from ..errors import Conflict, LivecloneError, StoreError
from ..host import files, locks, priority, process
from ..model.machine import ProcessRef
from ..model.snapshot import Part, Snapshot, SnapshotState
from ..store.layout import MANIFEST
from . import disposal, parts, recheck
from .context import Context, open_context
from .settings import read as read_settings

LOG = "seal.log"
DEADLINE_S = 3600.0


def start(ctx: Context, snapshot: Snapshot) -> ProcessRef:
    """Begin to seal in the background."""
    settings = ctx.settings
    argv = [sys.executable, "-m", __name__, str(settings.home), str(settings.hot), snapshot.id]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    log = ctx.layout.snapshot(snapshot.id) / LOG
    return process.start(argv, cwd=Path("/"), log=log, env=environment)


async def wait(ctx: Context, snapshot: Snapshot, sealing: ProcessRef) -> Snapshot:
    """Wait until the snapshot is sealed, and return its manifest as it is then.

    Cancelled, it only waits no longer, and the CancelledError has a note that says so.

    Raises:
        StoreError: sealing failed; the snapshot can be used until the host reboots.
    """
    ctx.progress("sealing", None)
    try:
        await process.wait(sealing, DEADLINE_S)
    except asyncio.CancelledError as error:
        error.add_note(f"snapshot {snapshot.name} stands, and goes on being sealed in the background")
        raise
    sealed = ctx.snapshots.load(snapshot.id)
    if sealed.state is not SnapshotState.SEALED:
        log = ctx.layout.snapshot(snapshot.id) / LOG
        raise StoreError(
            f"snapshot {snapshot.name} could not be sealed",
            code="not-sealed",
            tried="making the durable copy",
            on=snapshot.name,
            seen=log.read_text(errors="replace").strip()[-300:],
            source_state="running",
            next_step=f"liveclone snapshot seal {snapshot.name}; until then it does not survive a reboot",
        )
    return sealed


async def finish(ctx: Context, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot's manifest once it is sealed: by whoever is at it already, or else begun anew.

    Raises:
        StoreError: sealing failed; the snapshot can be used until the host reboots.
        Conflict: somebody is at it and does not end. NotFound: it was removed meanwhile.
    """
    ctx.progress("sealing", None)
    seen = await _look_when_free(ctx, snapshot)
    if seen.state is SnapshotState.SEALED:
        return seen
    try:
        return await wait(ctx, seen, start(ctx, seen))
    except StoreError:
        # Somebody else may have begun at the same moment, and ours left it to them.
        seen = await _look_when_free(ctx, snapshot)
        if seen.state is SnapshotState.SEALED:
            return seen
        raise


async def _look_when_free(ctx: Context, snapshot: Snapshot) -> Snapshot:
    async with locks.hold_async(ctx.layout.lock(f"seal-{snapshot.id}"), "waiting", DEADLINE_S):
        return ctx.snapshots.load(snapshot.id)


def start_again(ctx: Context) -> list[Snapshot]:
    """Begin anew, in the background, to seal what is not sealed and nobody is at any more; return those snapshots."""
    left = [
        snapshot
        for snapshot in ctx.snapshots.list()
        if snapshot.state is not SnapshotState.SEALED
        and not locks.is_held(ctx.layout.lock(f"seal-{snapshot.id}"))
    ]
    for snapshot in left:
        start(ctx, snapshot)
    return left


def seal(ctx: Context, snapshot_id: str) -> Snapshot:
    """Seal a snapshot, in this process; one that is sealed stays as it is, one that is being sealed is waited for.

    Raises:
        Conflict: another process seals it and does not end. NotFound: it was removed. StoreError: no room, no permission.
    """
    with locks.hold(ctx.layout.lock(f"seal-{snapshot_id}"), "sealing", DEADLINE_S):
        snapshot = ctx.snapshots.load(snapshot_id)
        if snapshot.state is SnapshotState.SEALED:
            return snapshot
        folder = ctx.layout.snapshot(snapshot_id)
        parts.check(ctx, snapshot)
        trace.at("seal.begun")
        memory = folder / snapshot.memory.file
        if snapshot.hot is not None and not memory.exists():
            temporary = memory.with_suffix(".part")
            temporary.unlink(missing_ok=True)
            files.copy_sparse(Path(snapshot.hot.path), temporary, mode=0o400)
            trace.at("seal.copied")
            temporary.rename(memory)
        sealed: Snapshot = snapshot.replace(
            memory=_digested(memory, snapshot.memory),
            disk=_digested(folder / snapshot.disk.file, snapshot.disk),
            disks=tuple(
                disk.replace(part=_digested(folder / disk.part.file, disk.part)) for disk in snapshot.disks
            ),
            state=SnapshotState.SEALED,
        )
        for part in (*parts.disks_of(snapshot), snapshot.device_state):
            _sync(folder / part.file)
        files.sync_folder(folder)
        trace.at("seal.digested")
        # Together with clones that start, but not while the snapshot is being removed.
        with locks.hold(ctx.layout.lock(f"snapshot-{snapshot_id}"), "sealing", DEADLINE_S, shared=True):
            if not (folder / MANIFEST).exists():  # removed while we worked: do not bring it back
                memory.unlink(missing_ok=True)
                return snapshot
            parts.remember_stamp(folder, memory)
            ctx.snapshots.save(sealed)
        if (folder / recheck.WANTED).exists():
            recheck.start(ctx, sealed)
        trace.at("seal.done")
        return sealed


def _digested(path: Path, part: Part) -> Part:
    changed: Part = part.replace(digest=parts.digest(path), size_bytes=path.stat().st_size)
    return changed


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def main(arguments: list[str]) -> int:
    """Seal, as a process of its own."""
    home, hot, snapshot_id = arguments
    settings = replace(read_settings(), home=Path(home), hot=Path(hot))
    priority.give_way()  # clones that start meanwhile come first
    try:
        ctx = open_context(settings)
        try:
            seal(ctx, snapshot_id)
        finally:
            disposal.sweep_locks(ctx)  # ours could not go while we held it
    except Conflict:
        return 0
    except LivecloneError as error:
        sys.stderr.write(f"{error.code}: {error.message} ({error.seen})\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
