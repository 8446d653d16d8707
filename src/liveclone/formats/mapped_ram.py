"""Mapped RAM: each block's pages lie in the file at their own place, as QEMU 9 and later write them for libvirt's "sparse".

    after a block's name and length in the list of blocks:
        be32 version 1   be64 page size   be64 offset of the bitmap   be64 offset of the pages
        bitmap, a bit for each page that was written     gap to the next MiB     pages (holes where no bit is set)
    then the next block; the parts that follow hold no page

The offsets count from the beginning of the file. Bitmap words are the host's longs, which on a little-endian host are bytes
in order. A page whose bit is clear is zero whatever lies in its place: it may have been written, and then become zero.
Source: QEMU, docs/devel/migration/mapped-ram.rst, and files that QEMU 10.0.2 wrote.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ..units import MIB, PAGE
from .stream_window import Steps, Window

HEADER_BYTES = 28
_ALIGNMENT = MIB
_ROW = 512

Take = Callable[[int, int, bytes | None], None]


def read_block(window: Window, length: int, take: Take) -> Steps:
    """Read one block of `length` bytes and call `take(offset, size_bytes, data or None)` for each stretch, in order."""
    yield HEADER_BYTES
    version, page, bitmap_at, pages_at = window.be32(), window.be64(4), window.be64(12), window.be64(20)
    pages = length // PAGE
    bitmap_bytes = -(-pages // 64) * 8
    expected = window.offset + HEADER_BYTES
    after = expected + bitmap_bytes
    if version != 1 or page != PAGE or length % PAGE:
        raise window.bad(f"mapped RAM of version {version}, {length} bytes in pages of {page}")
    if bitmap_at != expected or pages_at != after + -after % _ALIGNMENT:
        raise window.bad(f"mapped RAM has its bitmap at {bitmap_at} and its pages at {pages_at}")
    window.skip(HEADER_BYTES)
    yield bitmap_bytes
    bitmap = np.frombuffer(window.peek(bitmap_bytes), dtype=np.uint8)
    if np.unpackbits(bitmap[pages // 8 :], bitorder="little")[pages % 8 :].any():
        raise window.bad("the bitmap of mapped RAM has more pages than the block")
    window.skip(bitmap_bytes)
    yield pages_at - after
    window.skip(pages_at - after)
    done = 0
    while done < pages:
        yield PAGE
        count = min(pages - done, window.ahead // PAGE, _ROW)
        first = done // 8
        bits = np.unpackbits(bitmap[first : (done + count + 7) // 8], bitorder="little")[done - first * 8 :][
            :count
        ]
        edges = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), count]
        for start, end in itertools.pairwise(edges):
            data = window.peek((end - start) * PAGE, start * PAGE) if bits[start] else None
            take((done + start) * PAGE, (end - start) * PAGE, data)
        window.skip(count * PAGE)
        done += count
