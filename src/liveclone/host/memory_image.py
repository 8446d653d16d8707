"""A memory image that is being written: guest RAM as flat sparse bytes, in runs of pages that may come again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 2 * 1024 * 1024


class ImageWriter:
    """Use `create_image`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen: set[int] = set()  # chunks with data: a later run of zeros must overwrite them

    def resize(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def write(self, offset: int, size_bytes: int, data: bytes | memoryview | None) -> None:
        """Write a run of pages; None: of zeros, which take no room where nothing was written before."""
        places = range(offset // _CHUNK, (offset + size_bytes - 1) // _CHUNK + 1)
        if data is None:
            if not self._seen.isdisjoint(places):
                os.pwrite(self._fd, bytes(size_bytes), offset)
            return
        self._seen.update(places)
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)


@contextlib.contextmanager
def create_image(path: Path) -> Iterator[ImageWriter]:
    """Open a new memory image for writing, owner only; one of that name is emptied.

    Raises:
        OSError: it cannot be written.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield ImageWriter(fd)
    finally:
        os.close(fd)
