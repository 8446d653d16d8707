"""The bytes of a migration stream that have arrived and are not used up; what its parsers share.

A parser is a generator: `yield n` waits until n bytes lie ahead. It looks (`peek`), then either drops what it saw
(`skip`) or keeps it for the page-less stream (`keep`).
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import NamedTuple

from ..errors import Corrupt

Steps = Generator[int, None, None]


class Run(
    NamedTuple
):  # made a million times for a machine of a few GiB, three times as fast as a frozen dataclass
    """Consecutive pages of the block that is taken out. `data` is None for zero pages."""

    offset: int
    size_bytes: int
    data: bytes | None


class Window:
    """What lies ahead, and what was made of the rest. `start` is where the stream begins in its file."""

    def __init__(self, start: int = 0) -> None:
        self.buffer = bytearray()
        self.position = 0
        self._base = start
        self.kept = bytearray()
        self.runs: list[Run] = []

    @property
    def offset(self) -> int:
        return self._base + self.position

    @property
    def ahead(self) -> int:
        return len(self.buffer) - self.position

    def cut(self) -> None:
        """Forget what was used up."""
        del self.buffer[: self.position]
        self._base += self.position
        self.position = 0

    def peek(self, size: int, after: int = 0) -> bytes:
        start = self.position + after
        return bytes(self.buffer[start : start + size])

    def byte(self, after: int = 0) -> int:
        return self.buffer[self.position + after]

    def be32(self, after: int = 0) -> int:
        return int(struct.unpack_from(">I", self.buffer, self.position + after)[0])

    def be64(self, after: int = 0) -> int:
        return int(struct.unpack_from(">Q", self.buffer, self.position + after)[0])

    def skip(self, size: int) -> None:
        self.position += size

    def keep(self, size: int) -> None:
        self.kept += self.buffer[self.position : self.position + size]
        self.position += size

    def bad(self, what: str, after: int = 0) -> Corrupt:
        offset = self.offset + after
        return Corrupt(
            f"the migration stream cannot be read at offset {offset}: {what}",
            code="bad-stream",
            tried="splitting a migration stream",
            on=f"offset {offset}",
            seen=what,
            next_step="report it with QEMU's version",
        )
