"""Guest RAM: a real file, mapped shared (a source from cold) or private (everything that stands on a memory image).

The guest uses a few pages and leaves the rest untouched, so that a machine of any size costs next to nothing:

    page 16..1039         the system's files and state, written whenever the machine is captured
    page 2048 + 64 * n    the counter, 16 pages: the processor writes one after the other, round by round

Every write goes through `write`, which is where a hypervisor write-protects (background) or logs dirty pages (stream).
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable

PAGE = 4096
STATE = range(16, 1040)
COUNTERS = tuple(range(2048, 2048 + 16 * 64, 64))
LEAST_BYTES = 16 * 1024 * 1024

Save = Callable[[int, bytes], None]


class Ram:
    """The RAM of one machine.

    Args:
        shared: map the file shared and write it; else the file is opened read-only and mapped copy-on-write.
    """

    def __init__(self, path: str, size_bytes: int, *, shared: bool) -> None:
        fd = os.open(path, (os.O_RDWR if shared else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, size_bytes, access=mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY)
        finally:
            os.close(fd)
        self.size_bytes = size_bytes
        self._lock = threading.Lock()
        self._save: Save | None = None
        self._unsaved: set[int] = set()
        self._dirty: set[int] = set()

    def read(self, page: int) -> bytes:
        return self._map[page * PAGE : (page + 1) * PAGE]

    def write(self, page: int, data: bytes) -> None:
        """Write the beginning of a page. Whoever captures gets the old content first."""
        with self._lock:
            self._save_page(page)
            self._dirty.add(page)
            self._map[page * PAGE : page * PAGE + len(data)] = data

    def protect(self, save: Save) -> None:
        """From now on every page is given to `save` once, with the content it has at this instant."""
        with self._lock:
            self._unsaved = set(used_pages())
            self._save = save

    def save_rest(self) -> None:
        """Save what the guest has not written since `protect`; the guest goes on meanwhile."""
        for page in used_pages():
            with self._lock:
                self._save_page(page)
        self.unprotect()

    def unprotect(self) -> None:
        """Save nothing any more."""
        with self._lock:
            self._save = None
            self._unsaved.clear()

    def copy(self, save: Save, pages: Iterable[int]) -> None:
        """Give pages to `save` as they are while the guest goes on; those written from now on are dirty again."""
        for page in sorted(pages):
            with self._lock:
                self._dirty.discard(page)
                save(page, self.read(page))

    def dirty(self) -> set[int]:
        """Return the pages written since they were last copied."""
        with self._lock:
            return set(self._dirty)

    def _save_page(self, page: int) -> None:
        if self._save is not None and page in self._unsaved:
            self._unsaved.discard(page)
            self._save(page, self.read(page))


def used_pages() -> list[int]:
    """Return the numbers of all pages that a guest ever touches, in order."""
    return [*STATE, *COUNTERS]
