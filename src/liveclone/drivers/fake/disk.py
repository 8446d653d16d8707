"""The guest's disk: layers on each other, as the engine makes them, each written at its end only.

    layer   header of an empty overlay (formats/qcow2) | line | line | ...
    base    any file; one that begins with MAGIC       | line | line | ...

A line is a JSON object: {"file": "/etc/hostname", "data": base64} or {"count": 17}. What a later line or a layer
further up says counts. Locks are QEMU's: the top layer alone (exclusive), those under it shared, so no layer is ever
written by two, nor written while somebody stands on it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from ...formats import qcow2

MAGIC = b"liveclone fake disk\n"


class DiskBusy(Exception):
    """Another process writes this layer, or stands on it."""


class Disk:
    """A chain of layers with the top one open for writing; use `open_disk`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._locks: list[int] = []
        self._fd = -1

    @property
    def open(self) -> bool:
        return self._fd >= 0

    def acquire(self) -> None:
        """Lock the chain and open its top for writing.

        Raises:
            DiskBusy: another process has it; nothing is held.
        """
        try:
            for layer in chain(self.path):
                top = layer == self.path
                fd = os.open(layer, (os.O_RDWR | os.O_APPEND if top else os.O_RDONLY) | os.O_CLOEXEC)
                self._locks.append(fd)
                fcntl.flock(fd, (fcntl.LOCK_EX if top else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise DiskBusy(f"{layer} is in use by another process") from None
        except BaseException:
            self.release()
            raise
        self._fd = self._locks[0]

    def release(self) -> None:
        """Let go of all layers; nothing is lost."""
        self._fd = -1
        while self._locks:
            os.close(self._locks.pop())

    def append(self, **line: Any) -> None:
        """Write one line. The machine may be killed at any time: half a line is no line."""
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def put_layer(self, path: str) -> None:
        """Write the empty layer at `path` from now on; the present one is frozen under it.

        Raises:
            ValueError: it does not stand on the present one. DiskBusy: somebody else has it.
        """
        if not os.path.samefile(_backing(path), self.path):
            raise ValueError(f"{path} does not stand on {self.path}")
        above = Disk(path)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        try:
            above.acquire()
        except BaseException:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise
        self.release()
        self.path, self._fd, self._locks = above.path, above._fd, above._locks

    def take_layer_off(self, below: str) -> None:
        """Undo `put_layer`: write what the top layer holds into `below`, and go on with that."""
        held = list(_lines(self.path))
        self.release()
        self.path = below
        self.acquire()
        for line in held:
            self.append(**line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield all lines of the chain, the lowest layer's first."""
        for layer in reversed(list(chain(self.path))):
            yield from _lines(layer)


def chain(path: str) -> Iterator[str]:
    """Yield the layers from the top to the base."""
    while path:
        yield path
        path = _backing(path)


def write_base(path: str, files: dict[str, bytes]) -> None:
    """Make a base that holds the given files of the guest ("/etc/hostname")."""
    with open(path, "xb") as file:
        file.write(MAGIC)
        for name, data in files.items():
            line = {"file": name, "data": base64.b64encode(data).decode()}
            file.write(json.dumps(line).encode() + b"\n")


def _header(path: str) -> qcow2.Qcow2Header | None:
    with open(path, "rb") as file:
        data = file.read(qcow2.HEADER_BYTES)
    return qcow2.parse_header(data) if data.startswith(qcow2.MAGIC) else None


def _backing(path: str) -> str:
    header = _header(path)
    return os.path.join(os.path.dirname(path), header.backing) if header and header.backing else ""


def _lines(path: str) -> Iterator[dict[str, Any]]:
    header = _header(path)
    with open(path, "rb") as file:
        if header is None:
            if file.read(len(MAGIC)) != MAGIC:
                return  # somebody's disk: nothing of ours is on it
        elif header.backing:
            args = header.backing, header.backing_format, header.size_bytes, header.cluster_bits
            file.seek(len(qcow2.render_overlay(*args)))
        else:
            return
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
