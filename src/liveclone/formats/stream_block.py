"""What a page-less stream holds of one small RAM block: all blocks but `pc.ram` are still in it (migration_stream.py).

A flash device is such a block, `system.flash1`: so the variables of UEFI firmware come from the very instant of the memory.
"""

from __future__ import annotations

from .migration_stream import Splitter


def read_block(state: bytes, block: str) -> bytes:
    """Return the content of `block`, as a machine that loads this stream has it.

    Raises:
        Corrupt: the stream cannot be read, or lacks the block ("bad-stream").
    """
    splitter = Splitter(block)
    runs = splitter.feed(state)
    splitter.finish()
    content = bytearray(splitter.block_bytes)
    for run in runs:  # the last one counts, and what is nowhere is zero
        content[run.offset : run.offset + run.size_bytes] = run.data or bytes(run.size_bytes)
    return bytes(content)
