"""Locks between processes (flock): held by an open file, so the kernel drops them when the holder dies.

The holder writes who it is and what it does into the file, for the message that a waiting command gives. There are a few
hundred bytes a lock; lock files are never removed, since a waiter would then hold a lock on a file nobody sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from ..errors import Conflict


@contextlib.contextmanager
def hold(path: Path, what: str, deadline_s: float = 0.0, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock at `path` in the block. `what` says why, for others ("snapshot of web").

    Args:
        deadline_s: how long to wait for another holder; 0 fails at once.
        shared: several may hold it together, as long as none holds it alone.

    Raises:
        Conflict: somebody else holds it (code "busy"); who, and what for, is in `seen`.
    """
    fd = _open(path)
    try:
        _acquire(fd, path, what, deadline_s, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if not shared:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {what}".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def hold_async(
    path: Path, what: str, deadline_s: float = 0.0, *, shared: bool = False
) -> AsyncIterator[None]:
    """As `hold`, without blocking the event loop while it waits."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(path, what, 0.0, shared=shared))
        except Conflict:
            if not deadline_s:
                raise
            holding = hold(path, what, deadline_s, shared=shared)
            await asyncio.to_thread(stack.enter_context, holding)
        yield


def is_held(path: Path) -> bool:
    """Tell whether somebody holds the lock alone just now."""
    if not path.exists():
        return False
    fd = _open(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _acquire(fd: int, path: Path, what: str, deadline_s: float, kind: int) -> None:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return
    if deadline_s > 0 and _wait(fd, kind, deadline_s):
        return
    holder = os.pread(fd, 200, 0).decode(errors="replace")
    pid, _, does = holder.partition(" ")
    raise Conflict(
        f"busy: another command is at work on it ({does or 'unknown'})",
        code="busy",
        tried=what,
        on=path.name,
        seen=f"process {pid}: {does}" if pid else "held",
        next_step="try again when it has finished",
    )


def _wait(fd: int, kind: int, deadline_s: float) -> bool:
    """Wait for a lock in the kernel's queue, in a thread of its own: flock(2) itself knows no deadline."""
    copy = os.dup(fd)  # same open file: what the thread locks is ours, and it can outlive our descriptor
    given_up = threading.Event()
    have = threading.Event()

    def work() -> None:
        try:
            fcntl.flock(copy, kind)
            if given_up.is_set():
                fcntl.flock(copy, fcntl.LOCK_UN)
            else:
                have.set()
        finally:
            os.close(copy)

    threading.Thread(target=work, daemon=True).start()
    if have.wait(deadline_s):
        return True
    given_up.set()
    return have.is_set()
