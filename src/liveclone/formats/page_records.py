"""The pages of a RAM section: those of one block become runs, those of all others are kept.

    be64 address|flags  [name, unless 0x20 "same block as before"]
         0x02 zero: one byte   0x08 page: 4096 bytes   0x10 end of this section's pages

QEMU sends a page again when the machine has written to it, so runs come in stream order and the last one counts.
Long rows of records are looked at together; a record that stands alone is taken without numpy, whose calls would
cost more than its bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import Corrupt
from ..units import PAGE
from .stream_window import Run, Steps, Window

ZERO, FULL, END, SAME_BLOCK = 0x02, 0x08, 0x10, 0x20
FLAGS = PAGE - 1

FULL_RECORD = np.dtype([("head", ">u8"), ("data", f"V{PAGE}")])
_ZERO_RECORD = np.dtype([("head", ">u8"), ("fill", "u1")])
_ROW = 512  # pages looked at together: 2 MiB
_FEW = 8  # fewer are not worth a call of numpy


class PageRecords:
    """Reads part after part; the block that was named last carries over from one to the next.

    Args:
        block: the block to take out.
        blocks: every block's length in bytes; filled before the first part is read.
    """

    def __init__(self, window: Window, block: bytes, blocks: Mapping[bytes, int]) -> None:
        self._window = window
        self._block = block
        self._blocks = blocks
        self._current = b""
        self._kept_block = b""  # the block that the last kept record named

    def read(self) -> Steps:
        """Read records up to and with their end."""
        window = self._window
        buffer = window.buffer
        limit = self._blocks.get(self._current, 0)
        while True:
            if window.ahead < 8:
                yield 8
            at = window.position
            head = int.from_bytes(buffer[at : at + 8], "big")
            flags, address = head & FLAGS, head & ~FLAGS
            if flags == END:
                if address:
                    raise window.bad(f"the end of a section's pages has an address, {address:#x}")
                window.keep(8)
                return
            size = 8
            if not flags & SAME_BLOCK:
                yield 9
                length = window.byte(8)
                yield 9 + length
                self._current = window.peek(length, 9)
                size = 9 + length
                limit = self._blocks.get(self._current, 0)
            what = flags & ~SAME_BLOCK
            if what not in (FULL, ZERO):
                raise window.bad(f"page record with flags {flags:#x}")
            body = PAGE if what == FULL else 1
            if window.ahead < size + body:
                yield size + body
            at = window.position  # what waits may have moved it
            if address >= limit:
                raise self._beyond(address, limit)
            if what == ZERO and buffer[at + size]:
                raise window.bad(f"page filled with {buffer[at + size]:#x}")
            if self._current != self._block:
                self.keep(self._current, address, window.peek(body, size))
            elif flags & SAME_BLOCK and self._goes_on(flags, at + _FEW * (size + body)):
                self._take_row(flags, limit, FULL_RECORD if what == FULL else _ZERO_RECORD)
                continue
            else:
                data = bytes(buffer[at + size : at + size + PAGE]) if what == FULL else None
                window.runs.append(Run(address, PAGE, data))
            window.position = at + size + body

    def keep(self, block: bytes, address: int, body: bytes) -> None:
        """Keep a page of another block: one byte, or all. The name is written where the last kept record had another."""
        kept = self._window.kept
        head = address | (ZERO if len(body) == 1 else FULL)
        if block == self._kept_block:
            kept += (head | SAME_BLOCK).to_bytes(8, "big")
        else:
            kept += head.to_bytes(8, "big") + bytes([len(block)]) + block
            self._kept_block = block
        kept += body

    def _beyond(self, address: int, limit: int) -> Corrupt:
        if limit:
            return self._window.bad(f"page at {address:#x} lies beyond the block's {limit:#x} bytes")
        return self._window.bad(f"page of block {self._current!r}, which is not in the list")

    def _goes_on(self, flags: int, at: int) -> bool:
        """Whether enough records of this kind follow, by the last one's head: the row itself is checked in full."""
        buffer = self._window.buffer
        return at + 8 <= len(buffer) and int.from_bytes(buffer[at + 6 : at + 8], "big") & FLAGS == flags

    def _take_row(self, flags: int, limit: int, record: np.dtype[Any]) -> None:
        """Take this record and all after it of the same kind, each stretch of addresses that continue as one run."""
        window = self._window
        count = min(window.ahead // record.itemsize, _ROW)
        view = np.frombuffer(window.buffer, dtype=record, count=count, offset=window.position)
        heads = view["head"].astype(np.uint64)
        good = (heads & np.uint64(FLAGS) == flags) & (heads < np.uint64(limit))
        if record is _ZERO_RECORD:
            good &= view["fill"] == 0
        # What is not as it should be ends the row, and is met next as a record of its own.
        length = count if good.all() else int(good.argmin())
        heads = heads[:length] & np.uint64(0xFFFF_FFFF_FFFF_F000)
        breaks = np.flatnonzero(np.diff(heads) != PAGE) + 1
        edges = [0, *breaks.tolist(), length]
        for start, end in itertools.pairwise(edges):
            data = view["data"][start:end].tobytes() if record is FULL_RECORD else None
            window.runs.append(Run(int(heads[start]), (end - start) * PAGE, data))
        del view  # or the buffer cannot be cut
        window.skip(length * record.itemsize)
