"""The splitter against streams that an independent writer builds, against damaged ones, and against QEMU's own.

tests/unit/streams holds two streams that QEMU 10.0.2 wrote (lzma), of a machine that never ran:

    qemu-system-x86_64 -nodefaults -machine q35,memory-backend=pc.ram -m 128M -S -bios ZEROS \\
        -object memory-backend-{ram,file},id=pc.ram,size=128M[,share=on] \\
        -device loader,file=BLOB,addr=0x200000,force-raw=on -device virtio-rng-pci -device vmgenid,guid=...
    migrate-set-capabilities events [x-ignore-shared]       migrate file:...

BLOB is `blob()` below: six pages of text, the only pages of pc.ram that are not zero.
"""

from __future__ import annotations

import lzma
import struct
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveclone.errors import Corrupt
from liveclone.formats.migration_stream import Run, Splitter
from liveclone.units import MIB, PAGE

STREAMS = Path(__file__).with_name("streams")

ZERO, LIST, FULL, END, SAME = 0x02, 0x04, 0x08, 0x10, 0x20
BLOCKS = {"pc.ram": 24, "vga.vram": 4, "/rom@etc/acpi/tables": 2}  # pages
DESCRIPTION = b'{"page_size": 4096, "devices": []}'
DEVICE = b"\x04\x00\x00\x00\x07\x03cpu" + bytes(range(256))
DEVICES = DEVICE + b"\x00\x06" + struct.pack(">I", len(DESCRIPTION)) + DESCRIPTION


@dataclass(frozen=True)
class Page:
    """One page record. `fill` 0 makes a zero page; `named` writes the block's name although it is not needed."""

    block: str
    number: int
    fill: int
    named: bool = False

    @property
    def data(self) -> bytes:
        return struct.pack(">I", self.fill) * (PAGE // 4)


@dataclass
class Writer:
    """Writes a stream as docs/devel/migration of QEMU describes it; knows nothing of the splitter."""

    parts: list[list[Page]]
    ignore_shared: bool = False
    subsections: bytes = b""
    machine: bytes = b"pc-q35-10.0"
    offsets: dict[str, int] = field(default_factory=dict)
    out: bytearray = field(default_factory=bytearray)

    def render(self) -> bytes:
        out = self.out
        out += b"QEVM" + struct.pack(">I", 3)
        self.offsets["configuration"] = len(out)
        out += b"\x07" + struct.pack(">I", len(self.machine)) + self.machine + self.subsections
        self.offsets["start"] = len(out)
        out += b"\x01" + struct.pack(">I", 2) + b"\x03ram" + struct.pack(">II", 0, 4)
        self.offsets["list"] = len(out)
        out += struct.pack(">Q", sum(BLOCKS.values()) * PAGE | LIST)
        for name, pages in BLOCKS.items():
            out += bytes([len(name)]) + name.encode() + struct.pack(">Q", pages * PAGE)
            if self.ignore_shared:
                out += struct.pack(">Q", 0x1000)
        self.offsets["list end"] = len(out)
        out += struct.pack(">Q", END)
        self.offsets["start footer"] = len(out)
        out += self.footer()
        current = ""
        for index, part in enumerate(self.parts):
            self.offsets[f"part {index}"] = len(out)
            last = index == len(self.parts) - 1
            out += (b"\x03" if last else b"\x02") + struct.pack(">I", 2)
            for page in part:
                same = page.block == current and not page.named
                kind = FULL if page.fill else ZERO
                out += struct.pack(">Q", page.number * PAGE | kind | (SAME if same else 0))
                if not same:
                    out += bytes([len(page.block)]) + page.block.encode()
                out += page.data if page.fill else b"\x00"
                current = page.block
            out += struct.pack(">Q", END) + self.footer()
            out += b"\x08" + struct.pack(">HH", 3, 4) + b"ping"  # a command between sections
        self.offsets["devices"] = len(out)
        out += DEVICES
        return bytes(out)

    @staticmethod
    def footer() -> bytes:
        return b"\x7e" + struct.pack(">I", 2)


def split(
    stream: bytes, sizes: Iterable[int] = (), *, ignore_shared: bool = False
) -> tuple[Splitter, list[Run]]:
    """Feed a stream in pieces of the given sizes, then the rest."""
    splitter, runs, at = Splitter("pc.ram", ignore_shared=ignore_shared), [], 0
    for size in sizes:
        runs += splitter.feed(stream[at : at + size])
        at += size
    runs += splitter.feed(stream[at:])
    return splitter, runs


def paint(runs: Iterable[Run], size_bytes: int) -> bytes:
    """Return the memory that runs make, in their order."""
    memory = bytearray(b"?" * size_bytes)
    for run in runs:
        assert run.size_bytes % PAGE == 0 and run.size_bytes > 0
        data = bytes(run.size_bytes) if run.data is None else run.data
        assert len(data) == run.size_bytes
        memory[run.offset : run.offset + run.size_bytes] = data
    return bytes(memory)


pages = st.sampled_from(sorted(BLOCKS)).flatmap(
    lambda block: st.builds(
        Page,
        block=st.just(block),
        number=st.integers(0, BLOCKS[block] - 1),
        fill=st.sampled_from([0, 0, 1, 2**32 - 1, 0x7E000000]),
        named=st.booleans(),
    )
)
rows = st.builds(
    lambda block, begin, length, fill: [
        Page(block, number, fill) for number in range(begin, min(begin + length, BLOCKS[block]))
    ],
    st.just("pc.ram"),
    st.integers(0, 23),
    st.integers(1, 24),
    st.sampled_from([0, 3]),
)
parts = st.lists(
    st.lists(st.one_of(rows, pages.map(lambda page: [page])), max_size=8).map(
        lambda p: [page for row in p for page in row]
    ),
    min_size=1,
    max_size=4,
)


@given(parts=parts, sizes=st.lists(st.integers(0, 9000), max_size=20), shared=st.booleans())
@settings(max_examples=60)
def test_pages_go_to_their_places_and_all_else_stays(
    parts: list[list[Page]], sizes: list[int], shared: bool
) -> None:
    stream = Writer(parts, ignore_shared=shared).render()
    splitter, runs = split(stream, sizes, ignore_shared=shared)
    expected = bytearray(b"?" * BLOCKS["pc.ram"] * PAGE)
    for page in (page for part in parts for page in part if page.block == "pc.ram"):
        expected[page.number * PAGE : (page.number + 1) * PAGE] = page.data
    assert paint(runs, splitter.block_bytes) == expected
    others = [[Page(p.block, p.number, p.fill) for p in part if p.block != "pc.ram"] for part in parts]
    assert splitter.finish() == Writer(others, ignore_shared=shared).render()


@given(parts=parts)
@settings(max_examples=30)
def test_a_stream_without_pages_is_split_into_itself(parts: list[list[Page]]) -> None:
    kept = split(Writer(parts).render())[0].finish()
    splitter, runs = split(kept)
    assert (runs, splitter.finish()) == ([], kept)


def test_byte_by_byte() -> None:
    stream = Writer(
        [[Page("pc.ram", 3, 7), Page("pc.ram", 4, 7), Page("vga.vram", 1, 9), Page("pc.ram", 5, 0)]]
    )
    whole = stream.render()
    splitter, runs = split(whole, [1] * len(whole))
    assert [(run.offset // PAGE, run.data is None) for run in runs] == [(3, False), (4, False), (5, True)]
    assert splitter.finish() == split(whole)[0].finish()


def test_consecutive_pages_come_as_one_run() -> None:
    stream = Writer([[Page("pc.ram", n, 7) for n in range(24)] + [Page("pc.ram", n, 0) for n in range(24)]])
    _, runs = split(stream.render())
    assert [(run.offset, run.size_bytes, run.data is None) for run in runs] == [
        (0, PAGE, False),  # the record that carries the name
        (PAGE, 23 * PAGE, False),
        (0, 24 * PAGE, True),
    ]


def test_what_follows_the_first_device_is_kept_unseen() -> None:
    writer = Writer([[Page("pc.ram", 0, 1)]])
    stream = writer.render()[: writer.offsets["devices"]]
    tail = DEVICE + bytes(range(256)) * 100
    splitter, _ = split(stream + tail, [len(stream) + 3])
    assert splitter.in_devices
    assert splitter.feed(DEVICES) == []
    assert splitter.finish().endswith(tail + DEVICES)


@pytest.mark.parametrize("size", [0, 4, 5, 6, 0xFF, 0x100, 0x106, 0x600, 0x10006, 0x60006])
def test_the_end_is_known_by_its_description(size: int) -> None:
    """Whatever its length looks like in bytes; and a byte more or less is not the end."""
    writer = Writer([[Page("pc.ram", 0, 1)]])
    stream = writer.render()[: writer.offsets["devices"]] + DEVICE
    text = b"{" + b"x" * size + b"}"
    end = b"\x00\x06" + struct.pack(">I", len(text)) + text
    assert split(stream + end)[0].finish().endswith(end)
    for bad in (end[:-1], end + b"}", end[:-1] + b"x", end + b"\0"):
        splitter = split(stream + bad)[0]
        with pytest.raises(Corrupt) as caught:
            splitter.finish()
        assert caught.value.on == f"offset {len(stream) + len(bad)}"


def test_what_is_kept_can_be_taken_away_while_it_grows() -> None:
    """A screen in motion is sent again and again."""
    stream = Writer([[Page("vga.vram", 1, number + 1)] * 3 for number in range(20)]).render()
    at_once = split(stream)[0]
    whole = at_once.finish()
    splitter, drained, most = Splitter("pc.ram"), b"", 0
    for at in range(0, len(stream), 50):
        splitter.feed(stream[at : at + 50])
        piece = splitter.drain()
        drained, most = drained + piece, max(most, len(piece))
    assert drained + splitter.finish() == whole
    assert splitter.pages_at == at_once.pages_at
    assert most < 4 * PAGE


def test_memory_does_not_grow_with_the_image() -> None:
    """Sixteen times as many pages, each in its place, need no more of it."""
    head = Writer([[]]).render()
    head = head[: Writer([[]]).render().index(b"\x03" + struct.pack(">I", 2)) + 5]

    def peak(rows: int) -> int:
        splitter = Splitter("pc.ram")
        splitter.feed(head + struct.pack(">Q", ZERO) + b"\x06pc.ram\0")
        piece = b"".join(
            struct.pack(">Q", number * PAGE | FULL | SAME) + bytes([number + 1]) * PAGE
            for number in range(24)
        )
        tracemalloc.start()
        for _ in range(rows):
            assert splitter.feed(piece)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    few, many = peak(10), peak(160)
    assert many < few + 10 * PAGE


def test_what_the_stream_says_of_its_machine() -> None:
    splitter, _ = split(Writer([[]]).render())
    assert splitter.machine == "pc-q35-10.0"
    assert splitter.blocks == {name: pages * PAGE for name, pages in BLOCKS.items()}
    assert splitter.block_bytes == BLOCKS["pc.ram"] * PAGE


def test_a_device_before_any_part_of_memory_is_refused() -> None:
    """Or the memory would be taken for whole although not a page of it was seen."""
    for name in ("configuration", "start", "part 0"):
        writer = Writer([[Page("pc.ram", 1, 5)]])
        stream = writer.render()[: writer.offsets[name]] + DEVICES
        with pytest.raises(Corrupt) as caught:
            split(stream)
        assert "before any part of RAM" in caught.value.message
        assert caught.value.on == f"offset {writer.offsets[name]}"


def test_a_page_that_is_sent_again_counts_the_last_time() -> None:
    again = [Page("pc.ram", 3, 0), Page("pc.ram", 3, 8), Page("pc.ram", 4, 8), Page("pc.ram", 3, 9)]
    rows = [Page("pc.ram", number % 12, number + 1) for number in range(24)]  # one row, two stretches
    splitter, runs = split(Writer([again, rows, [Page("pc.ram", 5, 0)]]).render())
    memory = paint(runs, splitter.block_bytes)
    expected = [number + 13 for number in range(12)]
    expected[5] = 0
    assert [struct.unpack_from(">I", memory, number * PAGE)[0] for number in range(12)] == expected


def test_known_subsections_of_the_configuration_are_kept() -> None:
    name = b"configuration/capabilities"
    capabilities = (
        b"\x05" + bytes([len(name)]) + name + struct.pack(">II", 1, 2) + b"\x03one" + b"\x0fx-ignore-shared"
    )
    bits = b"configuration/target-page-bits"
    target = b"\x05" + bytes([len(bits)]) + bits + struct.pack(">II", 1, 12)
    stream = Writer([[]], subsections=capabilities + target).render()
    assert split(stream, [30, 1, 1, 40])[0].finish() == stream


# Damaged, or not understood: refused with the offset


def damage(at: str, more: int, new: bytes, parts: list[list[Page]] | None = None) -> tuple[bytes, int]:
    """Return a stream in which bytes were replaced, and where its damaged record begins."""
    writer = Writer(parts if parts is not None else [[Page("pc.ram", 1, 5)]])
    stream = bytearray(writer.render())
    offset = writer.offsets[at]
    stream[offset + more : offset + more + len(new)] = new
    return bytes(stream), offset


U64 = struct.Struct(">Q").pack


@pytest.mark.parametrize(
    ("at", "more", "new", "words", "further"),
    [
        ("configuration", -8, b"QEVN", "not a migration stream", -8),
        ("configuration", -8, b"LibvirtQ", "not a migration stream", -8),
        ("configuration", -1, b"\x02", "not a migration stream", -8),
        ("configuration", 0, b"\x09", "unknown kind 0x9", 0),
        ("configuration", 1, b"\xff", "machine type of", 0),
        ("start", 0, b"\x05\x03abc" + bytes(4), "configuration holds b'abc'", 9),
        ("start", 6, b"rom", "b'rom' is sent in parts", 0),
        ("list", 0, U64(4096 | FULL), "list of RAM blocks", 0),
        ("list", 0, U64(5 * PAGE | LIST), "does not add up", None),
        ("list", 9, b"pc.bam", "lacks pc.ram", None),
        ("list end", 0, U64(END | 1), "does not end", 0),
        ("start footer", 0, b"\x7d", "no footer", 0),
        ("start footer", 4, b"\x09", "no footer", 0),
        ("part 0", 0, b"\x06", "unknown kind 0x6", 0),
        ("part 0", 4, b"\x09", "section 9, which was never begun", 0),
        ("part 0", 5, U64(PAGE | 0x40), "flags 0x40", 5),  # XBZRLE
        ("part 0", 5, U64(PAGE | 0x100), "flags 0x100", 5),  # compressed
        ("part 0", 5, U64(PAGE | FULL | ZERO), "flags 0xa", 5),
        ("part 0", 5, U64(24 * PAGE | FULL), "beyond the block's 0x18000", 5),
        ("part 0", 5, U64((1 << 63) | FULL), "beyond the block's 0x18000", 5),
        ("part 0", 5, U64(PAGE | END), "has an address", 5),
        ("part 0", 5 + 8 + 1, b"pc.rum", "block b'pc.rum', which is not in the list", 5),
        ("start", 16, b"\x05", "RAM of version 5", 0),
        ("list", 0, U64((1 << 45) | LIST), "RAM of 0x", 0),
        ("list", 8 + 7, U64(1 << 60), "does not add up", 8),
        ("list", 8 + 7, U64(PAGE + 1), "does not add up", 8),
        ("devices", -9, b"\x06", "unknown kind 0x6", -9),
    ],
)
def test_damage_is_refused_with_its_offset(
    at: str, more: int, new: bytes, words: str, further: int | None
) -> None:
    stream, offset = damage(at, more, new)
    for sizes in ([], [1] * len(stream)):
        with pytest.raises(Corrupt) as caught:
            split(stream, sizes)[0].finish()
        assert words in caught.value.message
        assert caught.value.code == "bad-stream"
        if further is not None:
            assert caught.value.on == f"offset {offset + further}"


@pytest.mark.parametrize("filling", [5 + 8 + 7, 5 + 8 + 7 + 1 + 8])
def test_a_page_of_another_filling_than_zero_is_refused(filling: int) -> None:
    """The one-byte form exists for any filling; QEMU sends it for zeros only, and so we take nothing else."""
    zeros = [[Page("pc.ram", number, 0) for number in range(2)]]
    stream, _ = damage("part 0", filling, b"\x41", zeros)
    with pytest.raises(Corrupt) as caught:
        split(stream)
    assert "filled with" in caught.value.message


@pytest.mark.parametrize("number", [1, 2, 8, 12, 23])
@pytest.mark.parametrize("fill", [0, 5])
def test_damage_within_a_row_is_named_where_it_is(fill: int, number: int) -> None:
    row = [[Page("pc.ram", number, fill) for number in range(24)]]
    stride = 8 + (PAGE if fill else 1)
    at = 5 + 7 + number * stride
    wrongs = [
        (0, U64(24 * PAGE | SAME | (FULL if fill else ZERO)), "beyond the block's"),
        (7, b"\x6a", "flags 0x6a"),
    ]
    if not fill:
        wrongs.append((8, b"\x41", "filled with 0x41"))
    for more, new, words in wrongs:
        stream, offset = damage("part 0", at + more, new, row)
        splitter = Splitter("pc.ram")
        with pytest.raises(Corrupt) as caught:
            splitter.feed(stream)
        assert words in caught.value.message
        assert caught.value.on == f"offset {offset + at}"


@given(parts=parts, cut=st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_stream_that_ends_early_is_refused(parts: list[list[Page]], cut: int) -> None:
    writer = Writer(parts)
    stream = writer.render()
    cut %= len(stream)
    with pytest.raises(Corrupt) as caught:
        split(stream[:cut])[0].finish()
    expected = (
        "ends before any device" if cut <= writer.offsets["devices"] else "ends within the device state"
    )
    assert expected in caught.value.message
    assert caught.value.on == f"offset {cut}" or cut <= writer.offsets["devices"]


@given(parts=parts, at=st.integers(0, 10**6), new=st.integers(0, 255), size=st.integers(1, 5000))
@settings(max_examples=60)
def test_whatever_is_damaged_it_is_split_or_refused(
    parts: list[list[Page]], at: int, new: int, size: int
) -> None:
    stream = bytearray(Writer(parts).render())
    stream[at % len(stream)] = new
    try:
        splitter, runs = split(bytes(stream), [size] * 20)
        splitter.finish()
    except Corrupt:
        return
    for run in runs:
        assert run.offset + run.size_bytes <= splitter.block_bytes


# Streams of a real QEMU


def load_stream(name: str) -> bytes:
    return lzma.decompress((STREAMS / f"qemu-10.0-{name}.xz").read_bytes())


def blob() -> bytes:
    text = b"".join(b"liveclone page %d " % number * 200 for number in range(6))
    size = 6 * PAGE - 100
    return text[:size].ljust(size, b".") + bytes(100)


@pytest.mark.parametrize("piece", [1000, 65536, 10**9])
def test_a_stream_of_qemu(piece: int) -> None:
    stream = load_stream("plain")
    splitter, runs = split(stream, [piece] * (len(stream) // piece))
    assert splitter.block_bytes == 128 * MIB
    assert sum(run.size_bytes for run in runs) == 128 * MIB, "every page was sent once"
    data = sorted((run.offset, run.data) for run in runs if run.data is not None)
    assert b"".join(page for _, page in data) == blob()
    assert data[0][0] == 0x200000
    kept = splitter.finish()
    again, none = split(kept)
    same = again.finish() == kept
    assert none == [] and same
    # The other blocks' pages and every device are there still, byte for byte.
    same_end = kept[-100_000:] == stream[-100_000:]
    names_devices = b"virtio-rng" in kept and b"vmgenid" in kept
    assert same_end and names_devices


def test_a_stream_of_qemu_that_ignores_shared_memory() -> None:
    stream = load_stream("ignore-shared")
    splitter, runs = split(stream, [777] * 100, ignore_shared=True)
    assert runs == []
    assert splitter.block_bytes == 128 * MIB
    same = splitter.finish() == stream  # not compared in the assertion, which would print both
    assert same


def test_the_wrong_kind_of_stream_is_refused() -> None:
    with pytest.raises(Corrupt):
        split(load_stream("ignore-shared"))[0].finish()
    with pytest.raises(Corrupt):
        split(load_stream("plain"), ignore_shared=True)[0].finish()
