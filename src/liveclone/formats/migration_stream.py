"""QEMU's migration stream, split while it arrives: one RAM block's pages out, everything else kept.

    "QEVM" version
    7  configuration: machine type, capabilities
    1  start of `ram`: total size, list of (block name, length)
    2  part, 3 end of `ram`: page records until 0x10
         be64 address|flags  [name, unless 0x20 "same block as before"]
         flags 0x02 zero: one byte   0x08 page: 4096 bytes   0x10 end of this section's pages
    8  command (size-prefixed)
    4  the first device: from here to the end nothing is looked at
    0x7e section id                         footer after each section

What is kept is itself a valid stream: it still lists every block and carries the pages of all blocks but the
one taken out, so a QEMU whose RAM already holds those pages loads it. The layout was read off QEMU 10.0's
documentation (docs/devel/migration) and off streams that it wrote; whatever is not listed above is refused
with its offset, never guessed.

NOT HANDLED: compressed, XBZRLE, multifd and postcopy records. Tripwire: `Corrupt` naming the flag and offset.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import Corrupt
from ..units import PAGE

MAGIC = b"QEVM"
VERSION = 3

_SECTION_START, _SECTION_PART, _SECTION_END, _SECTION_FULL = 1, 2, 3, 4
_SUBSECTION, _CONFIGURATION, _COMMAND, _FOOTER = 5, 7, 8, 0x7E

_ZERO, _MEM_SIZE, _PAGE, _EOS, _SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
_FLAGS = PAGE - 1

_PAGE_RECORD = np.dtype([("head", ">u8"), ("data", f"V{PAGE}")])
_ZERO_RECORD = np.dtype([("head", ">u8"), ("fill", "u1")])
_RUN = 512  # pages looked at together: 2 MiB, a few cache-friendly copies
_STEPS = np.arange(_RUN, dtype=np.uint64) * PAGE


@dataclass(frozen=True)
class Run:
    """Consecutive pages of the block that is taken out. `data` is None for zero pages."""

    offset: int
    size_bytes: int
    data: bytes | None


class Splitter:
    """Takes a stream in pieces of any size; see the module.

    Args:
        block: the RAM block to take out ("pc.ram").
        ignore_shared: the stream was written with x-ignore-shared (block list entries carry an address).
    """

    def __init__(self, block: str, *, ignore_shared: bool = False) -> None:
        self._block = block.encode()
        self._ignore_shared = ignore_shared
        self._buffer = bytearray()
        self._base = 0  # stream offset of the buffer's first byte
        self._position = 0  # in the buffer
        self._runs: list[Run] = []
        self._current = b""
        self._kept_block = b""  # the block that the last kept record named
        self.kept = bytearray()
        self.block_bytes = 0
        self.in_devices = False
        self._ram_section: int | None = None
        self._parser = self._parse()
        self._need = next(self._parser)

    def feed(self, data: bytes) -> list[Run]:
        """Take the next piece; return the runs of pages that are complete now, in stream order.

        Raises:
            Corrupt: the stream is not what the module describes; the offset is named.
        """
        if self.in_devices:
            self.kept += data
            return []
        self._buffer += data
        while not self.in_devices and len(self._buffer) - self._position >= self._need:
            try:
                self._need = self._parser.send(None)
            except StopIteration:
                break
        if self.in_devices:
            self.kept += self._buffer[self._position :]
            self._buffer.clear()
        else:
            del self._buffer[: self._position]
            self._base += self._position
        self._position = 0
        runs, self._runs = self._runs, []
        return runs

    def finish(self) -> bytes:
        """Return the page-less stream; call it at the end of the input.

        Raises:
            Corrupt: the stream ended before its devices.
        """
        if not self.in_devices:
            raise self._bad("the stream ends before any device state")
        return bytes(self.kept)

    # The parser: each `yield n` waits until n bytes are there from the position on.

    def _parse(self) -> Generator[int, None, None]:
        yield 8
        magic, version = self._peek(4), struct.unpack(">I", self._peek(8)[4:])[0]
        if magic != MAGIC or version != VERSION:
            raise self._bad(f"not a migration stream of version {VERSION}: {self._peek(8).hex()}")
        self._keep(8)
        while True:
            yield 1
            kind = self._buffer[self._position]
            if kind == _CONFIGURATION:
                yield from self._configuration()
            elif kind == _SECTION_START:
                yield from self._start()
            elif kind in (_SECTION_PART, _SECTION_END):
                yield from self._part()
            elif kind == _COMMAND:
                yield 5
                size = struct.unpack(">H", self._peek(5)[3:])[0]
                yield 5 + size
                self._keep(5 + size)
            elif kind == _SECTION_FULL:
                self.in_devices = True
                return
            else:
                raise self._bad(f"section of unknown kind {kind:#x}")

    def _configuration(self) -> Generator[int, None, None]:
        yield 5
        length = struct.unpack(">I", self._peek(5)[1:])[0]
        if length > 256:
            raise self._bad(f"machine type of {length} characters")
        yield 5 + length
        self._keep(5 + length)
        while True:
            yield 1
            if self._buffer[self._position] != _SUBSECTION:
                return
            yield 2
            size = self._peek(2)[1]
            yield 2 + size + 4
            name = self._peek(2 + size)[2:]
            self._keep(2 + size + 4)
            if name == b"configuration/capabilities":
                yield 4
                count = struct.unpack(">I", self._peek(4))[0]
                self._keep(4)
                for _ in range(count):
                    yield 1
                    size = self._peek(1)[0]
                    yield 1 + size
                    self._keep(1 + size)
            elif name == b"configuration/target-page-bits":
                yield 4
                self._keep(4)
            else:
                raise self._bad(f"configuration holds {name!r}, which is not known")

    def _start(self) -> Generator[int, None, None]:
        yield 6
        size = self._peek(6)[5]
        yield 6 + size + 8
        name = self._peek(6 + size)[6:]
        section = struct.unpack(">I", self._peek(5)[1:])[0]
        if name != b"ram":
            raise self._bad(f"section {name!r} is sent in parts, which is not known")
        self._ram_section = section
        self._keep(6 + size + 8)
        yield 8
        head = struct.unpack(">Q", self._peek(8))[0]
        if head & _FLAGS != _MEM_SIZE:
            raise self._bad(f"expected the list of RAM blocks, found flags {head & _FLAGS:#x}")
        self._keep(8)
        left = head & ~_FLAGS
        while left > 0:
            yield 1
            size = self._peek(1)[0]
            tail = 16 if self._ignore_shared else 8
            yield 1 + size + tail
            name = self._peek(1 + size)[1:]
            length = struct.unpack(">Q", self._peek(1 + size + 8)[1 + size :])[0]
            if name == self._block:
                self.block_bytes = length
            self._keep(1 + size + tail)
            left -= length
        if left or not self.block_bytes:
            raise self._bad(f"the list of RAM blocks does not add up, or lacks {self._block.decode()}")
        yield 8
        if struct.unpack(">Q", self._peek(8))[0] != _EOS:
            raise self._bad("the list of RAM blocks does not end")
        self._keep(8)
        yield from self._footer(section)

    def _part(self) -> Generator[int, None, None]:
        yield 5
        section = struct.unpack(">I", self._peek(5)[1:])[0]
        if section != self._ram_section:
            raise self._bad(f"part of section {section}, which was never begun")
        self._keep(5)
        while True:
            yield 8
            head = int.from_bytes(self._buffer[self._position : self._position + 8], "big")
            flags = head & _FLAGS
            if flags == _EOS:
                self._keep(8)
                break
            size = 8
            if not flags & _SAME_BLOCK:
                yield 9
                length = self._buffer[self._position + 8]
                yield 9 + length
                self._current = bytes(self._peek(9 + length)[9:])
                size = 9 + length
            what = flags & ~_SAME_BLOCK
            if what == _PAGE:
                body, record = PAGE, _PAGE_RECORD
            elif what == _ZERO:
                body, record = 1, _ZERO_RECORD
            else:
                raise self._bad(f"page record with flags {flags:#x}")
            yield size + body
            if self._current != self._block:
                self._keep_record(head, size, body)
            elif flags & _SAME_BLOCK:
                self._take_run(head, record)
            else:
                body_at = self._position + size
                data = bytes(self._buffer[body_at : body_at + body])
                self._take(head & ~_FLAGS, PAGE, data if what == _PAGE else None, fill=data[:1])
                self._position = body_at + body
        yield from self._footer(section)

    def _take_run(self, head: int, record: np.dtype[Any]) -> None:
        """Take this record and all after it that just continue: same kind, next address."""
        count = min((len(self._buffer) - self._position) // record.itemsize, _RUN)
        view = np.frombuffer(self._buffer, dtype=record, count=count, offset=self._position)
        goes_on = view["head"] == head + _STEPS[:count]
        if record is _ZERO_RECORD:
            goes_on &= view["fill"] == 0
        length = count if goes_on.all() else int(goes_on.argmin())
        if length == 0:
            raise self._bad(f"page filled with {view['fill'][0]:#x}")
        data = view["data"][:length].tobytes() if record is _PAGE_RECORD else None
        del view  # or the buffer cannot be cut
        self._take(head & ~_FLAGS, length * PAGE, data)
        self._position += length * record.itemsize

    def _take(self, offset: int, size_bytes: int, data: bytes | None, fill: bytes = b"\0") -> None:
        if data is None and fill != b"\0":
            raise self._bad(f"page filled with {fill.hex()}")
        if offset + size_bytes > self.block_bytes:
            raise self._bad(f"page at {offset:#x} lies beyond the block's {self.block_bytes:#x} bytes")
        self._runs.append(Run(offset, size_bytes, data))

    def _keep_record(self, head: int, size: int, body: int) -> None:
        """Keep a page of another block. Its name is written again: the record it relied on may have been taken out."""
        if self._current == self._kept_block:
            self.kept += (head | _SAME_BLOCK).to_bytes(8, "big")
        else:
            self.kept += (head & ~_SAME_BLOCK).to_bytes(8, "big")
            self.kept += bytes([len(self._current)]) + self._current
            self._kept_block = self._current
        start = self._position + size
        self.kept += self._buffer[start : start + body]
        self._position = start + body

    def _footer(self, section: int) -> Generator[int, None, None]:
        yield 5
        if self._peek(5) != bytes([_FOOTER]) + struct.pack(">I", section):
            raise self._bad(f"section {section} has no footer")
        self._keep(5)

    def _peek(self, size: int) -> bytes:
        return bytes(self._buffer[self._position : self._position + size])

    def _keep(self, size: int) -> None:
        self.kept += self._buffer[self._position : self._position + size]
        self._position += size

    def _bad(self, what: str) -> Corrupt:
        offset = self._base + self._position
        return Corrupt(
            f"the migration stream cannot be read at offset {offset}: {what}",
            code="bad-stream",
            tried="splitting a migration stream",
            on=f"offset {offset}",
            seen=what,
            next_step="report it with QEMU's version",
        )
