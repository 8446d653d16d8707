"""QEMU's migration stream, split while it arrives: one RAM block's pages out, everything else kept.

    "QEVM" version
    7  configuration: machine type, capabilities
    1  start of `ram`: total size, list of (block name, length); with mapped-ram the pages too (mapped_ram.py)
    2  part, 3 end of `ram`: page records (page_records.py)
    8  command (size-prefixed)
    4  the first device: from here to the end nothing is looked at
    0x7e section id                         footer after each section
    0  6 length JSON                        the end: a description of the devices

What is kept is itself a valid stream: it still lists every block and carries the pages of all blocks but the
one taken out (firmware, flash, option ROMs, video memory), so a QEMU whose RAM already holds those pages loads it. A
stream with mapped-ram is kept as one without, which loads from anywhere. The layout was read off QEMU 10.0's
documentation (docs/devel/migration) and off streams that it wrote, of machines of its own and of earlier versions, and
QEMU 7.2; of QEMU 8 and 9 themselves there was none. Whatever is not listed above is refused with its offset, never guessed.

NOT HANDLED: compressed, XBZRLE, multifd and postcopy records, devices before RAM (virtio-mem), mapped-ram together with
x-ignore-shared (crashes before QEMU 11), a machine type of 2.3 or older (no footers; QEMU 10 has none of them). Tripwire:
`Corrupt` naming what was found and its offset.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from ..units import PAGE
from . import mapped_ram
from .page_records import END, FLAGS, PageRecords
from .stream_window import Run, Steps, Window

__all__ = ["MAGIC", "VERSION", "Run", "Splitter"]

MAGIC = b"QEVM"
VERSION = 3

_SECTION_START, _SECTION_PART, _SECTION_END, _SECTION_FULL = 1, 2, 3, 4
_SUBSECTION, _DESCRIPTION, _CONFIGURATION, _COMMAND, _FOOTER = 5, 6, 7, 8, 0x7E
_MEM_SIZE = 0x04
_CAPABILITIES, _PAGE_BITS = b"configuration/capabilities", b"configuration/target-page-bits"
_MAX_RAM = 1 << 44  # 16 TiB: x86's limit under Linux is 64, and nothing is allocated by it but a bitmap


class Splitter:
    """Takes a stream in pieces of any size; see the module.

    Args:
        block: the RAM block to take out ("pc.ram").
        ignore_shared: the stream was written with x-ignore-shared (block list entries carry an address).
        start: where the stream begins in its file, behind a save image's header. Offsets in errors count from the file's
            beginning too.

    `block_bytes` is the length of the block that is taken out, `pages_at` where in the page-less stream pages can be put
    back (stream_join.py).
    """

    def __init__(self, block: str, *, ignore_shared: bool = False, start: int = 0) -> None:
        self._block = block.encode()
        self._ignore_shared = ignore_shared
        self._window = Window(start)
        self._blocks: dict[bytes, int] = {}
        self._records = PageRecords(self._window, self._block, self._blocks)
        self._mapped = False
        self._mapped_pages: list[
            tuple[bytes, int, int, bytes | None]
        ] = []  # of other blocks, until they are kept
        self._devices = bytearray()
        self._parts = 0
        self._drained = 0
        self._ram_section: int | None = None
        self.block_bytes = 0
        self.pages_at = 0
        self.machine = ""
        self.in_devices = False
        self._parser = self._parse()
        self._need = next(self._parser)

    @property
    def blocks(self) -> dict[str, int]:
        """Every RAM block and its length in bytes, in stream order."""
        return {name.decode(errors="replace"): size for name, size in self._blocks.items()}

    def feed(self, data: bytes) -> list[Run]:
        """Take the next piece; return the runs of pages that are complete now, in stream order.

        A page may come again: the last one counts.

        Raises:
            Corrupt: the stream is not what the module describes; the offset is named.
        """
        if self.in_devices:
            self._devices += data
            return []
        window = self._window
        window.buffer += data
        while not self.in_devices and window.ahead >= self._need:
            try:
                self._need = self._parser.send(None)
            except StopIteration:
                break
        if self.in_devices:
            self._devices += window.buffer[window.position :]
        window.cut()
        runs, window.runs = window.runs, []
        return runs

    def drain(self) -> bytes:
        """Return what was kept so far of the page-less stream, and forget it: for a machine whose screen is in motion.

        `finish` then returns the rest.
        """
        kept = bytes(self._window.kept)
        self._drained += len(kept)
        self._window.kept.clear()
        return kept

    def finish(self) -> bytes:
        """Return the page-less stream, or what `drain` left of it; call it at the end of the input.

        Raises:
            Corrupt: the stream ended before its devices, or in the midst of them.
        """
        if not self.in_devices:
            raise self._window.bad("the stream ends before any device state")
        if not _is_whole(self._devices):
            raise self._window.bad("the stream ends within the device state", len(self._devices))
        return bytes(self._window.kept + self._devices)

    # The parser: each `yield n` waits until n bytes are there from the position on.

    def _parse(self) -> Steps:
        window = self._window
        yield 8
        if window.peek(4) != MAGIC or window.be32(4) != VERSION:
            raise window.bad(f"not a migration stream of version {VERSION}: {window.peek(8).hex()}")
        window.keep(8)
        while True:
            yield 1
            kind = window.byte()
            if kind == _CONFIGURATION:
                yield from self._configuration()
            elif kind == _SECTION_START:
                yield from self._start()
            elif kind in (_SECTION_PART, _SECTION_END):
                yield from self._part()
            elif kind == _COMMAND:
                yield 5
                size = window.be32(1) & 0xFFFF
                yield 5 + size
                window.keep(5 + size)
            elif kind == _SECTION_FULL:
                # A background snapshot has no end of `ram`, so what counts is that some part was there.
                if not self._parts:
                    raise window.bad("a device before any part of RAM")
                self.in_devices = True
                return
            else:
                raise window.bad(f"section of unknown kind {kind:#x}")

    def _configuration(self) -> Steps:
        window = self._window
        yield 5
        length = window.be32(1)
        if length > 256:
            raise window.bad(f"machine type of {length} characters")
        if self.machine or self._ram_section is not None:
            raise window.bad("a second configuration")
        yield 5 + length
        self.machine = window.peek(length, 5).decode(errors="replace")
        window.keep(5 + length)
        while True:
            yield 1
            if window.byte() != _SUBSECTION:
                return
            yield 2
            size = window.byte(1)
            yield 2 + size + 8  # its version, and the first word of either
            name = window.peek(size, 2)
            if name == _CAPABILITIES:
                yield from self._capabilities(2 + size + 4)
            elif name == _PAGE_BITS:
                window.keep(2 + size + 8)
            else:
                window.skip(2 + size + 4)
                raise window.bad(f"configuration holds {name!r}, which is not known")

    def _capabilities(self, head: int) -> Steps:
        """Keep the list without mapped-ram, and no list where nothing else is in it. `head` bytes come before its count."""
        window = self._window
        begin, size = window.peek(head), head + 4
        names = []
        for _ in range(window.be32(head)):
            yield size + 1
            length = window.byte(size)
            yield size + 1 + length
            names.append(window.peek(length, size + 1))
            size += 1 + length
            if len(names) > 256:
                raise window.bad("more than 256 capabilities")
        self._mapped = b"mapped-ram" in names
        if self._mapped and (self._ignore_shared or b"x-ignore-shared" in names):
            raise window.bad("mapped-ram together with x-ignore-shared")
        if not self._mapped:
            window.keep(size)
            return
        names.remove(b"mapped-ram")
        if names:
            window.kept += (
                begin + struct.pack(">I", len(names)) + b"".join(bytes([len(n)]) + n for n in names)
            )
        window.skip(size)

    def _start(self) -> Steps:
        window = self._window
        yield 6
        size = window.byte(5)
        yield 6 + size + 8
        name, section = window.peek(size, 6), window.be32(1)
        if name != b"ram":
            raise window.bad(f"section {name!r} is sent in parts, which is not known")
        if self._ram_section is not None:
            raise window.bad("a second start of RAM")
        if window.be32(6 + size + 4) != 4:
            raise window.bad(f"RAM of version {window.be32(6 + size + 4)}")
        self._ram_section = section
        window.keep(6 + size + 8)
        yield 8
        head = window.be64()
        if head & FLAGS != _MEM_SIZE:
            raise window.bad(f"expected the list of RAM blocks, found flags {head & FLAGS:#x}")
        left = head & ~FLAGS
        if left > _MAX_RAM:
            raise window.bad(f"RAM of {left:#x} bytes")
        window.keep(8)
        while left > 0:
            left -= yield from self._list_entry(left)
        self.block_bytes = self._blocks.get(self._block, 0)
        if not self.block_bytes:
            raise window.bad(f"the list of RAM blocks lacks {self._block.decode()}")
        yield 8
        if window.be64() != END:
            raise window.bad("the list of RAM blocks does not end")
        window.keep(8)
        yield from self._footer(section)

    def _list_entry(self, left: int) -> Generator[int, None, int]:
        """Keep one block's entry, without its pages; return its length, of at most `left` bytes."""
        window = self._window
        yield 1
        size = window.byte()
        tail = 16 if self._ignore_shared else 8
        yield 1 + size + tail
        name, length = window.peek(size, 1), window.be64(1 + size)
        if length > left or length % PAGE or not length or not name or name in self._blocks:
            raise window.bad(f"the list of RAM blocks does not add up at {name!r} of {length:#x} bytes")
        self._blocks[name] = length
        window.keep(1 + size + tail)
        if self._mapped:
            yield from mapped_ram.read_block(window, length, lambda *run: self._take_mapped(name, *run))
        return length

    def _take_mapped(self, name: bytes, offset: int, size_bytes: int, data: bytes | None) -> None:
        if name == self._block:
            self._window.runs.append(Run(offset, size_bytes, data))
        else:
            self._mapped_pages.append((name, offset, size_bytes, data))

    def _part(self) -> Steps:
        window = self._window
        yield 5
        section = window.be32(1)
        if section != self._ram_section:
            raise window.bad(f"part of section {section}, which was never begun")
        window.keep(5)
        if not self._parts:
            self.pages_at = self._drained + len(window.kept)
        self._parts += 1
        for name, offset, size_bytes, data in self._mapped_pages:
            for at in range(0, size_bytes, PAGE):
                self._records.keep(name, offset + at, b"\0" if data is None else data[at : at + PAGE])
        self._mapped_pages.clear()
        yield from self._records.read()
        yield from self._footer(section)

    def _footer(self, section: int) -> Steps:
        yield 5
        if self._window.peek(5) != bytes([_FOOTER]) + struct.pack(">I", section):
            raise self._window.bad(f"section {section} has no footer")
        self._window.keep(5)


def _is_whole(devices: bytearray) -> bool:
    """Whether it ends as a stream does: 0, then the description, which is text and so has no zero byte in it."""
    last = devices.rfind(b"\0")
    for at in range(max(0, last - 5), last + 1):
        length = len(devices) - at - 6
        if length > 0 and devices[at : at + 6] == bytes([0, _DESCRIPTION]) + length.to_bytes(4, "big"):
            return devices.endswith(b"}")
    return False
