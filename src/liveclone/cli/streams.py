"""Our own standard streams and terminal, without blocking the event loop and without changing what others share.

The descriptors may belong to a shell too, so they are never made non-blocking: where the kernel can say when they are
ready it is asked, and a write is then never longer than what is sure to fit. Files are always ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
import tty
from collections.abc import Iterator

# A pipe that is writable takes PIPE_BUF bytes without blocking (pipe(7)).
_SURE_BYTES = 4096


async def read(size: int, fd: int = 0) -> bytes:
    """Return what there is to read, at most `size` bytes; b"" at the end, or when nothing can be read."""
    try:
        await _ready(fd, writing=False)
        return os.read(fd, size)
    except OSError:  # closed, or a terminal that is gone
        return b""


async def write(data: bytes, fd: int) -> None:
    """Write all of `data`.

    Raises:
        BrokenPipeError: whoever read it has gone.
    """
    view = memoryview(data)
    while view:
        waited = await _ready(fd, writing=True)
        with contextlib.suppress(BlockingIOError):  # somebody else made it non-blocking
            view = view[os.write(fd, view[:_SURE_BYTES] if waited else view) :]


async def write_out(data: bytes) -> None:
    """Write to standard output."""
    await write(data, 1)


async def write_err(data: bytes) -> None:
    """Write to standard error."""
    await write(data, 2)


async def _ready(fd: int, *, writing: bool) -> bool:
    """Wait until the descriptor is ready; False when it is one that always is (a file)."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    try:
        add(fd, ready.set)
    except PermissionError:  # epoll_ctl(2), EPERM: a regular file
        return False
    try:
        await ready.wait()
    finally:
        remove(fd)
    return True


def is_terminal(fd: int = 0) -> bool:
    """Tell whether the descriptor is a terminal."""
    return os.isatty(fd)


@contextlib.contextmanager
def raw_terminal(fd: int = 0) -> Iterator[None]:
    """Let every key through as it is, in the block."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def terminal_size(fd: int = 0) -> tuple[int, int]:
    """Return rows and columns; 0, 0 where there is no terminal."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return size.lines, size.columns
