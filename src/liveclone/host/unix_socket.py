"""Unix sockets whose path may be longer than the 107 bytes that the kernel takes (unix(7)).

Both ends go through /proc/self/fd/N of the folder, which is always short.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path


def _at_folder(path: Path, action: Callable[[str], None]) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        action(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, owner only; whoever connects before it is served just waits."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        _at_folder(path, sock.bind)
        path.chmod(0o600)
        sock.listen(8)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: Path) -> socket.socket:
    """Return a non-blocking socket connected to whoever listens at `path` (a local connect never waits).

    Raises:
        OSError: nobody listens.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        _at_folder(path, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


async def open_connection(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return asyncio streams connected to `path`; lines up to 8 MiB can be read."""
    return await asyncio.open_connection(sock=connect(path), limit=8 * 1024 * 1024)
