"""The guest's disk: layers on each other, as the engine makes them, each written at its end only.

    layer   header of an empty overlay (formats/qcow2) | line | line | ...
    base    any file; one that begins with MAGIC       | line | line | ...

A line is a JSON object: {"file": "/etc/hostname", "data": base64} or {"count": 17}. What a later line or a layer
further up says counts. Locks are QEMU's: the top layer alone (exclusive), those under it shared, so no layer is ever
written by two, nor written while somebody stands on it. Which layers there are is read by `layers`, on the host's side.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

Layer = tuple[str, int]  # path, and where its lines begin; -1: it has none


class DiskBusy(Exception):
    """Another process writes this layer, or stands on it."""


class Disk:
    """A chain of layers, the top one first and open for writing between `acquire` and `release`."""

    def __init__(self, chain: list[Layer]) -> None:
        self._chain = self._before = chain  # before: by the names that its layers had when the top was put on
        self._fds: list[int] = []

    @property
    def path(self) -> str:
        """The layer that is written."""
        return self._chain[0][0]

    def acquire(self) -> None:
        """Lock the chain and open its top for writing.

        Raises:
            DiskBusy: another process has it; nothing is held.
        """
        try:
            for path, _ in self._chain:
                top = not self._fds
                fd = os.open(path, (os.O_RDWR | os.O_APPEND if top else os.O_RDONLY) | os.O_CLOEXEC)
                self._fds.append(fd)
                fcntl.flock(fd, (fcntl.LOCK_EX if top else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise DiskBusy(f"{path} is in use by another process") from None
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go of all layers; nothing is lost."""
        while self._fds:
            os.close(self._fds.pop())

    def append(self, **line: Any) -> None:
        """Write one line. The machine may be killed at any time: half a line is no line."""
        os.write(self._fds[0], json.dumps(line).encode() + b"\n")

    def put_layer(self, chain: list[Layer]) -> None:
        """Write the empty layer on top of `chain` from now on; the present top is frozen under it.

        Raises:
            DiskBusy: somebody else has it; everything is as before.
        """
        above = Disk(chain)
        fcntl.flock(self._fds[0], fcntl.LOCK_SH)
        try:
            above.acquire()
        except BaseException:
            fcntl.flock(self._fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise
        self.release()
        self._chain, self._before, self._fds = chain, self._chain, above._fds

    def take_layer_off(self) -> None:
        """Undo `put_layer`: write what the top layer holds into the one below, and go on with that."""
        held = list(_lines(*self._chain[0]))
        self.release()
        self._chain = self._before
        self.acquire()
        for line in held:
            self.append(**line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield all lines of the chain, the lowest layer's first."""
        for path, offset in reversed(self._chain):
            yield from _lines(path, offset)


def _lines(path: str, offset: int) -> Iterator[dict[str, Any]]:
    if offset < 0:
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
