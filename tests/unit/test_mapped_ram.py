"""Mapped RAM against files that an independent writer builds, and what is kept of them against the ordinary stream."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveclone.errors import Corrupt
from liveclone.formats.migration_stream import Run, Splitter
from liveclone.units import MIB, PAGE
from tests.unit.test_migration_stream import DEVICES, END, LIST, U64, Page, Writer, paint, split

BLOCKS = {"pc.ram": 70, "vga.vram": 3, "system.flash0": 64}
CAPABILITIES = b"configuration/capabilities"


@dataclass
class Mapped:
    """A file as docs/devel/migration/mapped-ram.rst describes it. `stale`: pages with data whose bit is clear."""

    pages: dict[str, dict[int, int]]
    stale: dict[str, set[int]] = field(default_factory=dict)
    prefix: bytes = b""
    capabilities: tuple[bytes, ...] = (b"mapped-ram",)
    offsets: dict[str, int] = field(default_factory=dict)

    def render(self) -> bytes:
        names = b"".join(bytes([len(name)]) + name for name in self.capabilities)
        out = bytearray(
            self.prefix + b"QEVM" + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", 3) + b"q35"
        )
        out += b"\x05" + bytes([len(CAPABILITIES)]) + CAPABILITIES
        out += struct.pack(">II", 1, len(self.capabilities)) + names
        out += b"\x01" + struct.pack(">I", 2) + b"\x03ram" + struct.pack(">II", 0, 4)
        out += struct.pack(">Q", sum(BLOCKS.values()) * PAGE | LIST)
        for name, count in BLOCKS.items():
            written = self.pages.get(name, {})
            out += bytes([len(name)]) + name.encode() + struct.pack(">Q", count * PAGE)
            self.offsets[name] = len(out)
            bits = sum(1 << number for number in written if number not in self.stale.get(name, ()))
            bitmap = bits.to_bytes(-(-count // 64) * 8, "little")
            bitmap_at = len(out) + 28
            pages_at = -(-(bitmap_at + len(bitmap)) // MIB) * MIB
            out += struct.pack(">IQQQ", 1, PAGE, bitmap_at, pages_at) + bitmap
            out += bytes(pages_at - len(out))
            for number in range(count):
                out += Page(name, number, written.get(number, 0)).data
        out += struct.pack(">Q", END) + Writer.footer()
        for kind in (2, 3):
            out += bytes([kind]) + struct.pack(">I", 2) + struct.pack(">Q", END) + Writer.footer()
        return bytes(out + DEVICES)

    def memory(self, name: str) -> bytes:
        stale = self.stale.get(name, set())
        written = self.pages.get(name, {})
        return b"".join(
            Page(name, number, 0 if number in stale else written.get(number, 0)).data
            for number in range(BLOCKS[name])
        )


def read(file: Mapped, sizes: list[int]) -> tuple[Splitter, list[Run]]:
    splitter, runs = Splitter("pc.ram", start=len(file.prefix)), []
    data, at = file.render(), len(file.prefix)
    for size in [*sizes, len(data)]:
        runs += splitter.feed(data[at : at + size])
        at += size
    return splitter, runs


def some(name: str) -> st.SearchStrategy[dict[int, int]]:
    return st.dictionaries(st.integers(0, BLOCKS[name] - 1), st.integers(1, 2**32 - 1), max_size=40)


files = st.builds(
    Mapped,
    pages=st.fixed_dictionaries({name: some(name) for name in BLOCKS}),
    stale=st.fixed_dictionaries({"pc.ram": st.sets(st.integers(0, 69)), "vga.vram": st.sets(st.just(1))}),
    prefix=st.sampled_from([b"", bytes(67675), bytes(MIB - 150)]),
)


@given(file=files, sizes=st.lists(st.integers(0, 200_000), max_size=20))
@settings(max_examples=40, deadline=None)
def test_pages_are_read_from_their_places(file: Mapped, sizes: list[int]) -> None:
    splitter, runs = read(file, sizes)
    same = paint(runs, splitter.block_bytes) == file.memory("pc.ram")
    assert same
    assert sum(run.size_bytes for run in runs) == splitter.block_bytes, "each page once"
    # What is kept is an ordinary stream: no mapped RAM, the other blocks' pages as records.
    kept = splitter.finish()
    assert b"mapped-ram" not in kept and CAPABILITIES not in kept and len(kept) < 80 * PAGE
    for name in ("vga.vram", "system.flash0"):
        other = Splitter(name)
        same = paint(other.feed(kept), other.block_bytes) == file.memory(name)
        assert same
    again, none = split(kept)
    assert none == [] and again.finish() == kept


def test_byte_by_byte() -> None:
    """But for the gaps, which would take long."""
    file = Mapped({"pc.ram": {0: 1, 1: 2, 69: 3}, "vga.vram": {2: 9}}, prefix=bytes(MIB - 200))
    _, whole = read(file, [])
    _, cut = read(file, [1] * (200 + 5000))
    assert paint(cut, 70 * PAGE) == paint(whole, 70 * PAGE) == file.memory("pc.ram")


def test_other_capabilities_stay_in_the_list() -> None:
    splitter, _ = read(Mapped({}, capabilities=(b"one", b"mapped-ram", b"other")), [60, 1, 1])
    assert CAPABILITIES + struct.pack(">II", 1, 2) + b"\x03one\x05other\x01" in splitter.finish()


@pytest.mark.parametrize(
    ("more", "new", "words"),
    [
        (0, struct.pack(">I", 2), "version 2"),
        (4, U64(65536), "pages of 65536"),
        (12, U64(0), "bitmap at 0"),
        (12, U64(1 << 62), "bitmap at"),
        (20, U64(0), "pages at 0"),
        (20, U64(1 << 62), "pages at"),
        (20, U64(3 * MIB), "pages at"),
        (28 + 15, b"\x80", "more pages than the block"),
        (28 + 8, b"\x40", "more pages than the block"),
    ],
)
def test_damage_is_refused_with_its_offset(more: int, new: bytes, words: str) -> None:
    file = Mapped({"pc.ram": {3: 1}}, prefix=bytes(100))
    data = bytearray(file.render())
    at = file.offsets["pc.ram"]
    data[at + more : at + more + len(new)] = new
    splitter = Splitter("pc.ram", start=100)
    with pytest.raises(Corrupt) as caught:
        splitter.feed(bytes(data[100:]))
    assert words in caught.value.message
    assert caught.value.on == f"offset {at + (28 if more >= 28 else 0)}"


def test_a_start_that_is_not_the_streams_is_noticed() -> None:
    with pytest.raises(Corrupt):
        Splitter("pc.ram", start=5).feed(Mapped({}).render())


def test_together_with_shared_memory_it_is_refused() -> None:
    with pytest.raises(Corrupt) as caught:
        read(Mapped({}, capabilities=(b"x-ignore-shared", b"mapped-ram")), [])
    assert "together with x-ignore-shared" in caught.value.message


@given(at=st.integers(0, 10**7), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_is_damaged_it_is_split_or_refused(at: int, bit: int, cut: bool) -> None:
    file = Mapped({"pc.ram": {3: 1}, "vga.vram": {1: 7}})
    data = bytearray(file.render())
    # Most of the file is gaps: half the places are in what comes before them, or after the last.
    at = at % 250 if at % 2 else at % len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    try:
        splitter = Splitter("pc.ram")
        runs = splitter.feed(bytes(data))
        splitter.finish()
    except Corrupt:
        return
    assert not cut
    assert all(run.offset + run.size_bytes <= splitter.block_bytes for run in runs)
