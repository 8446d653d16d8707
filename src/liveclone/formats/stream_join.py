"""The splitter's inverse: a page-less stream and the memory image become the whole stream, which any QEMU loads.

    state            header, list of blocks, part 1 (other blocks), ..., devices
    joined           header, list of blocks, part 1 (pc.ram's pages, other blocks), ..., devices

A clone starts so where nothing can put the memory image in a QEMU's place beforehand. The pages go to the beginning of the
first part, where no record refers to one before it, so splitting what was joined gives the same state, byte for byte.

Pages of zeros, and holes, become nothing at all. A QEMU that loads a stream begins with new RAM, anonymous or a
new file, which is zero; of what it would copy there itself (kernel, ROMs) it leaves everything to the stream (QEMU,
rom_reset in hw/core/loader.c). A record for each would have it touch each page, and on tmpfs so take the room of all.

NOT HANDLED: a QEMU whose RAM is a file with something in it already; a state written with x-ignore-shared, which needs the
same of who loads it. Tripwires: none for the first, whoever starts QEMU knows; `Corrupt` at the list of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..errors import Corrupt
from ..units import PAGE
from .migration_stream import Splitter
from .page_records import FULL, FULL_RECORD, SAME_BLOCK

_ROW = 64  # pages that become records together; more leave the processor's cache
PIECE = _ROW * FULL_RECORD.itemsize


def join(
    state: bytes, pages: Iterable[tuple[int, bytes]], *, size_bytes: int, block: str = "pc.ram"
) -> Iterator[memoryview]:
    """Return the whole stream, in pieces of at most PIECE bytes; nothing of it is kept.

    Args:
        state: the page-less stream.
        pages: what the memory image holds, as (offset, bytes) of whole pages, in ascending order, asked for as it is needed.
            What is not among it is zero.
        size_bytes: the memory image's length.

    Raises:
        Corrupt: at once, the state cannot be read ("bad-stream"), has pages of the block itself ("not-page-less"), or is
            that of another image ("wrong-size"); later, pages that cannot come next ("bad-page").
    """
    splitter = Splitter(block)
    if splitter.feed(state):
        raise _bad("not-page-less", f"the state holds pages of {block} itself")
    whole = splitter.finish()
    if splitter.block_bytes != size_bytes:
        seen = f"the memory image has {size_bytes} bytes, and the state's {block} {splitter.block_bytes}"
        raise _bad("wrong-size", seen)
    return _iter_pieces(memoryview(whole), splitter.pages_at, block.encode(), pages, size_bytes)


def _iter_pieces(
    state: memoryview, at: int, block: bytes, pages: Iterable[tuple[int, bytes]], size_bytes: int
) -> Iterator[memoryview]:
    yield from _cut(state[:at])
    is_named, done = False, 0
    for offset, data in pages:
        if offset % PAGE or len(data) % PAGE or not done <= offset <= size_bytes - len(data):
            seen = f"{len(data)} bytes at {offset}, after {done} of {size_bytes}, are not its next pages"
            raise _bad("bad-page", seen)
        done = offset + len(data)
        for begin in range(0, len(data), _ROW * PAGE):
            records = _render_row(offset + begin, memoryview(data)[begin : begin + _ROW * PAGE])
            if records and not is_named:
                head = int.from_bytes(records[:8], "big") & ~SAME_BLOCK
                yield memoryview(head.to_bytes(8, "big") + bytes([len(block)]) + block)
                records, is_named = records[8:], True
            if records:
                yield records
    yield from _cut(state[at:])


def _render_row(offset: int, data: memoryview) -> memoryview:
    """Return a record for each page that is not zero, all as of the block that was named before."""
    words = np.frombuffer(data, dtype=np.uint64).reshape(-1, PAGE // 8)
    full = np.flatnonzero(words.max(axis=1))  # faster than any()
    bodies = np.frombuffer(data, dtype=FULL_RECORD["data"])
    records = np.empty(len(full), dtype=FULL_RECORD)
    records["head"] = full * PAGE + (offset | FULL | SAME_BLOCK)
    records["data"] = bodies if len(full) == len(bodies) else bodies[full]
    return records.view(np.uint8).data


def _cut(data: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(data), PIECE):
        yield data[at : at + PIECE]


def _bad(code: str, seen: str) -> Corrupt:
    return Corrupt(
        f"state and memory image cannot be joined: {seen}",
        code=code,
        tried="joining a migration stream",
        seen=seen,
        next_step="take a new snapshot: the parts of this one do not belong together",
    )
