"""What was joined is split into the same again, whatever pages the image has and in whatever pieces it comes."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveclone.errors import Corrupt
from liveclone.formats import stream_join
from liveclone.units import MIB, PAGE
from tests.unit.test_golden_streams import STREAMS, load
from tests.unit.test_migration_stream import BLOCKS, Page, Writer, load_stream, pages, paint, parts, split

SIZE = BLOCKS["pc.ram"] * PAGE
others = st.lists(
    st.lists(pages.filter(lambda page: page.block != "pc.ram"), max_size=4), min_size=1, max_size=3
)


def join(state: bytes, image: bytes, reads: list[tuple[int, int]] | None = None) -> bytes:
    """Join, with the image read as (first page, pages), or at once."""
    chosen = reads if reads is not None else [(0, len(image) // PAGE)]
    runs = [(at * PAGE, image[at * PAGE : (at + count) * PAGE]) for at, count in chosen]
    pieces = list(stream_join.join(state, runs, size_bytes=len(image)))
    assert all(0 < len(piece) <= stream_join.PIECE for piece in pieces)
    return b"".join(pieces)


def split_into(stream: bytes) -> tuple[bytes, bytes]:
    """Return state and image, of memory that was zero before."""
    splitter, runs = split(stream)
    assert all(run.data is not None for run in runs), "a page of zeros is nothing at all"
    image = bytearray(splitter.block_bytes)
    for run in runs:
        image[run.offset : run.offset + run.size_bytes] = run.data or b""
    return splitter.finish(), bytes(image)


@st.composite
def images(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """An image, and the reads that take in all its pages with data."""
    image, reads, at = bytearray(SIZE), [], 0
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.integers(0, 4))
        count = draw(st.integers(0, 8))
        if at + count > BLOCKS["pc.ram"]:
            break
        for page in range(at, at + count):
            body = draw(
                st.sampled_from(
                    [bytes(PAGE), b"\1" * PAGE, bytes(PAGE - 1) + b"\x80", b"\x10" + bytes(PAGE - 1)]
                )
            )
            image[page * PAGE : (page + 1) * PAGE] = body
        reads.append((at, count))
        at += count
    return bytes(image), reads


@given(parts=others, made=images(), row=st.integers(1, 30))
@settings(max_examples=100)
def test_split_gives_back_what_was_joined(
    parts: list[list[Page]], made: tuple[bytes, list[tuple[int, int]]], row: int
) -> None:
    state = Writer([[Page(p.block, p.number, p.fill) for p in part] for part in parts]).render()
    image, reads = made
    before = stream_join._ROW
    stream_join._ROW = row
    try:
        joined = join(state, image, reads)
    finally:
        stream_join._ROW = before
    same = split_into(joined) == (state, image)
    assert same


@given(parts=parts)
@settings(max_examples=40)
def test_join_gives_back_what_was_split(parts: list[list[Page]]) -> None:
    """A stream in which pages come again, several blocks by turns: its state and its memory."""
    splitter, runs = split(Writer(parts).render())
    image = paint(runs, SIZE).replace(b"?" * PAGE, bytes(PAGE))
    state = splitter.finish()
    same = split_into(join(state, image)) == (state, image)
    assert same


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_qemu(name: str) -> None:
    splitter, runs = split(load(name))
    image, state = paint(runs, splitter.block_bytes).replace(b"?" * PAGE, bytes(PAGE)), splitter.finish()
    joined = join(state, image)
    same = split_into(joined) == (state, image)
    assert same
    used = sum(image[at : at + PAGE] != bytes(PAGE) for at in range(0, len(image), PAGE))
    assert len(joined) == len(state) + used * (8 + PAGE) + len(b"\6pc.ram"), "no byte more than needed"


def test_an_image_of_zeros_adds_nothing() -> None:
    state = Writer([[Page("vga.vram", 1, 5)]]).render()
    assert join(state, bytes(SIZE)) == join(state, bytes(SIZE), []) == state


def test_memory_does_not_grow_with_the_image() -> None:
    def peak(pages: int) -> int:
        size = pages * PAGE
        state = Writer([[]]).render()
        old = struct.pack(">Q", SIZE)
        state = state.replace(
            struct.pack(">Q", sum(BLOCKS.values()) * PAGE | 4), struct.pack(">Q", (pages + 6) * PAGE | 4)
        )
        state = state.replace(b"\6pc.ram" + old, b"\6pc.ram" + struct.pack(">Q", size))

        def read() -> Iterator[tuple[int, bytes]]:
            for at in range(0, size, MIB):
                yield at, b"x" * MIB

        tracemalloc.start()
        total = sum(len(piece) for piece in stream_join.join(state, read(), size_bytes=size))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total > size
        return most

    peak(256)
    assert peak(256 * 64) < peak(256 * 4) + 100_000


def bad(state: bytes, runs: list[tuple[int, bytes]], size: int = SIZE) -> Corrupt:
    with pytest.raises(Corrupt) as caught:
        list(stream_join.join(state, runs, size_bytes=size))
    return caught.value


def test_what_does_not_belong_together_is_refused() -> None:
    state = Writer([[]]).render()
    assert bad(state, [], SIZE + PAGE).code == "wrong-size"
    assert bad(state[:-1], []).code == "bad-stream"
    for fill in (0, 1):
        assert bad(Writer([[Page("pc.ram", 1, fill)]]).render(), []).code == "not-page-less"
    with pytest.raises(Corrupt):
        stream_join.join(state, [], size_bytes=SIZE - PAGE)  # at once, not when the first piece is taken


@pytest.mark.parametrize(
    "runs",
    [
        [(100, bytes(PAGE))],
        [(0, bytes(100))],
        [(-PAGE, bytes(PAGE))],
        [(SIZE, bytes(PAGE))],
        [(SIZE - PAGE, bytes(2 * PAGE))],
        [(PAGE, b"x" * PAGE), (0, b"x" * PAGE)],
        [(0, b"x" * 2 * PAGE), (PAGE, bytes(PAGE))],  # zeros would not take the place of what came before
    ],
)
def test_pages_that_the_image_cannot_have_are_refused(runs: list[tuple[int, bytes]]) -> None:
    error = bad(Writer([[]]).render(), runs)
    assert error.code == "bad-page" and error.seen


def test_a_state_that_ignores_shared_memory_is_refused() -> None:
    assert bad(load_stream("ignore-shared"), [], 128 * MIB).code == "bad-stream"
