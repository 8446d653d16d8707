"""Locks between processes: held by an open file, so the kernel drops them when the holder dies.

They are the kernel's "open file description locks" (fcntl_locking(2)): as flock(2), and one may ask who holds them without
taking them for a moment, which would make somebody else's attempt fail.

The holder writes who it is and what it does into the file, for the message that a waiting command gives.

A lock file goes with what it is the lock of: whoever holds it alone may unlink it, `remove` takes one that nobody holds. Who
waited for it meanwhile gets a lock on a file that nobody sees; so whoever gets one looks whether the file is still the one
that has the name, and begins anew if not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from ..errors import Conflict
from . import files

_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length (0: all of the file), pid


@contextlib.contextmanager
def hold(path: Path, what: str, deadline_s: float = 0.0, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock at `path` in the block. `what` says why, for others ("snapshot of web").

    Args:
        deadline_s: how long to wait for another holder; 0 fails at once.
        shared: several may hold it together, as long as none holds it alone.

    Raises:
        Conflict: somebody else holds it (code "busy"); who, and what for, is in `seen`.
        StoreError: the file cannot be opened (a read-only disk, another user's home).
    """
    kind, end = fcntl.F_RDLCK if shared else fcntl.F_WRLCK, time.monotonic() + deadline_s
    while True:
        with _opened(path) as fd:
            left_s = end - time.monotonic()
            if not _take(fd, kind) and not (left_s > 0 and _wait(fd, kind, left_s)):
                raise _busy(fd, path, what)
            if _has_name(fd, path):
                _sign(fd, what, shared)
                yield
                return


@contextlib.asynccontextmanager
async def hold_async(
    path: Path, what: str, deadline_s: float = 0.0, *, shared: bool = False
) -> AsyncIterator[None]:
    """As `hold`, without blocking the event loop while it waits; cancelling it ends the waiting at once."""
    kind, end = fcntl.F_RDLCK if shared else fcntl.F_WRLCK, time.monotonic() + deadline_s
    while True:
        with _opened(path) as fd:
            left_s = end - time.monotonic()
            if not _take(fd, kind) and not (left_s > 0 and await _wait_async(fd, kind, left_s)):
                raise _busy(fd, path, what)
            if _has_name(fd, path):
                _sign(fd, what, shared)
                yield
                return


def is_held(path: Path) -> bool:
    """Tell whether somebody holds the lock alone just now. Nobody feels it, and nothing is written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise files.explain(error, "looking at a lock", path) from error
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _describe(fcntl.F_RDLCK))
    finally:
        os.close(fd)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def remove(path: Path) -> bool:
    """Remove a lock file that nobody holds, shared or alone; False if somebody does, and then it stays.

    For a lock of something that is gone: a command that wants it in this very moment, without a deadline, is told "busy".

    Raises:
        StoreError: it cannot be removed.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise files.explain(error, "opening a lock", path) from error
    try:
        if not _take(fd, fcntl.F_WRLCK):
            return False
        if _has_name(fd, path):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise files.explain(error, "removing a lock", path) from error
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = _open(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise files.explain(error, "opening a lock", path) from error


def _describe(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _take(fd: int, kind: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _describe(kind))
    except BlockingIOError:
        return False
    return True


def _has_name(fd: int, path: Path) -> bool:
    """Tell whether `path` is still the file that we have open: what is not may have been locked by another since."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _sign(fd: int, what: str, shared: bool) -> None:
    """Say who we are, as far as there is room for it: what counts is the lock."""
    if not shared:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {what}".encode(), 0)


def _busy(fd: int, path: Path, what: str) -> Conflict:
    holder = os.pread(fd, 200, 0).decode(errors="replace")
    pid, _, does = holder.partition(" ")
    return Conflict(
        f"busy: another command is at work on it ({does or 'unknown'})",
        code="busy",
        tried=what,
        on=path.name,
        seen=f"process {pid}: {does}" if pid else "held",
        source_state="not touched",
        next_step="try again when it has finished",
    )


class _Waiter:
    """Waits for a lock in the kernel's queue, in a thread of its own: the call itself knows no deadline.

    The thread cannot be called back; one that is given up lets go of the lock when it gets it. It is a daemon, so that a
    command which has given up can end.
    """

    def __init__(self, fd: int, kind: int, tell: Callable[[], None]) -> None:
        self._fd = os.dup(
            fd
        )  # same open file: what the thread locks is ours, and it may outlive our descriptor
        self._kind = kind
        self._tell = tell
        self._given_up = threading.Event()
        self._have = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, _describe(self._kind))
            if self._given_up.is_set():
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _describe(fcntl.F_UNLCK))
            else:
                self._have.set()
                self._tell()
        finally:
            os.close(self._fd)

    def wait(self, deadline_s: float) -> bool:
        return self._have.wait(deadline_s) or self.give_up()

    def give_up(self) -> bool:
        """Stop waiting; True if it has come at the last moment and is ours after all."""
        self._given_up.set()
        return self._have.is_set()


def _wait(fd: int, kind: int, deadline_s: float) -> bool:
    return _Waiter(fd, kind, lambda: None).wait(deadline_s)


async def _wait_async(fd: int, kind: int, deadline_s: float) -> bool:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(told.set)

    waiter = _Waiter(fd, kind, tell)
    try:
        await asyncio.wait_for(told.wait(), deadline_s)
    except TimeoutError:
        return waiter.give_up()
    except asyncio.CancelledError:
        waiter.give_up()
        raise
    return True
