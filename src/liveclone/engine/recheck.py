"""Look at a memory image again after clones have started from it, where their hypervisor could have written it.

libvirt's QEMU opens the image for writing, though it maps it private (docs/hazards.md): a QEMU that a guest has taken over
could write what later clones get. The stamp of the image tells of write(2), not of a shared mapping. So, when clones have
started, a process of its own reads the whole image, at the lowest priority, and compares it with its digest:

    python -m liveclone.engine.recheck HOME HOT SNAPSHOT-ID      wanted: snapshots/ID/recheck    found: snapshots/ID/damaged

No clone starts from a snapshot that is `damaged`. One that is not sealed has no digest yet: sealing calls us at its end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from ..errors import LivecloneError
from ..host import files, locks, priority, process
from ..model.snapshot import Snapshot
from . import disposal, parts
from .context import Context, open_context
from .settings import read as read_settings

WANTED = "recheck"
LOG = "recheck.log"
DEADLINE_S = 3600.0


def start(ctx: Context, snapshot: Snapshot) -> None:
    """Have the image looked at in the background, if clones of this snapshot could have written it."""
    if snapshot.hot is None or not ctx.driver_for(snapshot.driver).shared:
        return
    folder = ctx.layout.snapshot(snapshot.id)
    with contextlib.suppress(OSError):
        (folder / WANTED).touch()
        settings = ctx.settings
        argv = [sys.executable, "-m", __name__, str(settings.home), str(settings.hot), snapshot.id]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process.start(argv, cwd=Path("/"), log=folder / LOG, env=environment)


def check(ctx: Context, snapshot_id: str) -> bool:
    """Compare the image with its digest, if that is wanted; False if it is another, and then that is written down.

    Raises:
        NotFound: the snapshot was removed. Conflict: somebody is at it and does not end.
    """
    folder = ctx.layout.snapshot(snapshot_id)
    with locks.hold(ctx.layout.lock(f"recheck-{snapshot_id}"), "looking at its memory image", DEADLINE_S):
        snapshot = ctx.snapshots.load(snapshot_id)
        image = Path(snapshot.hot.path) if snapshot.hot else None
        if not (folder / WANTED).exists() or not snapshot.memory.digest or image is None:
            return not (folder / parts.DAMAGED).exists()
        (folder / WANTED).unlink()  # before it is read: clones that start meanwhile want it read again
        if image.exists() and parts.digest(image) != snapshot.memory.digest:
            why = f"{image} was written to after clones had started from it"
            files.write_atomic(folder / parts.DAMAGED, why.encode())
            return False
    return True


def main(arguments: list[str]) -> int:
    """Check, as a process of its own."""
    home, hot, snapshot_id = arguments
    priority.give_way()
    try:
        ctx = open_context(replace(read_settings(), home=Path(home), hot=Path(hot)))
        try:
            if not check(ctx, snapshot_id):
                sys.stderr.write("the memory image is not what was captured\n")
                return 1
        finally:
            disposal.sweep_locks(ctx)  # ours could not go while we held it
    except LivecloneError as error:
        sys.stderr.write(f"{error.code}: {error.message} ({error.seen})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
