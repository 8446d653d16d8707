"""The intake of a migration stream: a real pipe, a writer that goes on, dies, or lies, a target that is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from liveclone.drivers.qemu import intake
from liveclone.drivers.qemu.session import Session
from liveclone.errors import Corrupt, StoreError
from liveclone.units import PAGE
from tests.contract.stories import story
from tests.unit.test_migration_stream import BLOCKS, Page, Writer, split

RAM_BYTES = BLOCKS["pc.ram"] * PAGE


class Lender:
    """Stands where QEMU's QMP connection is: it is lent the pipe's writing end, and closes what it holds."""

    def __init__(self) -> None:
        self.fd = -1
        self.refuse = False

    async def lend(self, fd: int, name: str) -> None:
        if self.refuse:
            raise ConnectionError("QEMU is gone")
        assert name == intake.NAME
        self.fd = os.dup(fd)

    async def call(self, command: str, **arguments: Any) -> None:
        assert (command, arguments) == ("closefd", {"fdname": intake.NAME})
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def session(self) -> Session:
        return cast(Session, self)


@pytest.fixture
def lender() -> Iterator[Lender]:
    before = _descriptors()
    lender = Lender()
    yield lender
    lender.close()
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _stream(*parts: list[Page]) -> bytes:
    return Writer(list(parts)).render()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def _write_and_close(lender: Lender, data: bytes) -> None:
    await asyncio.to_thread(_write, lender.fd, data)
    lender.close()


FIRST = [Page("pc.ram", number, number + 1) for number in range(20)]


@story
async def test_pages_and_the_rest_go_to_their_files(lender: Lender, tmp_path: Path) -> None:
    image, state = tmp_path / "memory", tmp_path / "state"
    again = [Page("pc.ram", 3, 99), Page("pc.ram", 4, 0), Page("vga.vram", 0, 5), Page("pc.ram", 23, 0)]
    stream = _stream(FIRST, again)
    async with intake.open_intake(lender.session, image, state) as taken:
        await _write_and_close(lender, stream)
        await taken.first_page()
        await taken.finish()
    expected = bytearray(RAM_BYTES)
    for page in (*FIRST, *again):
        if page.block == "pc.ram":
            expected[page.number * PAGE : (page.number + 1) * PAGE] = page.data
    assert image.read_bytes() == expected
    assert image.stat().st_mode & 0o777 == 0o600
    assert state.read_bytes() == split(stream)[0].finish()


@story
async def test_the_first_page_is_told_before_the_stream_has_ended(lender: Lender, tmp_path: Path) -> None:
    stream = _stream(FIRST)
    begin = Writer([FIRST])
    begin.render()
    half = begin.offsets["part 0"] + 5 + 2 * (8 + 7 + PAGE)
    async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state") as taken:
        await asyncio.to_thread(_write, lender.fd, stream[: begin.offsets["part 0"]])
        waiting = asyncio.create_task(taken.first_page())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done, "no page has come yet"
        await asyncio.to_thread(_write, lender.fd, stream[begin.offsets["part 0"] : half])
        await asyncio.wait_for(waiting, 10.0)
        await _write_and_close(lender, stream[half:])


@story
async def test_a_stream_without_any_page_does_not_hang(lender: Lender, tmp_path: Path) -> None:
    async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state") as taken:
        await _write_and_close(lender, _stream([]))
        await asyncio.wait_for(taken.first_page(), 10.0)
    assert (tmp_path / "memory").read_bytes() == bytes(RAM_BYTES)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@story
async def test_a_writer_that_dies_is_an_error_and_leaves_no_file(
    lender: Lender, tmp_path: Path, share: float
) -> None:
    """A real process writes and is killed: the pipe ends in the middle of the stream."""
    stream = _stream(FIRST)
    stream = stream[: int(stream.index(b"\x04\x00\x00\x00\x07\x03cpu") * share)]
    source = tmp_path / "stream"
    source.write_bytes(stream)

    async def take() -> None:
        async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state") as taken:
            line = f"cat '{source}' >/proc/self/fd/{lender.fd}; kill -9 $$"
            writer = await asyncio.create_subprocess_exec("sh", "-c", line, pass_fds=[lender.fd])
            lender.close()
            assert await writer.wait() == -signal.SIGKILL
            await taken.first_page()
            await taken.finish()

    with pytest.raises(Corrupt) as caught:
        await take()
    assert "ends before any device state" in caught.value.message
    assert sorted(tmp_path.iterdir()) == [source]


@story
async def test_what_is_no_stream_is_refused_and_the_writer_is_told(lender: Lender, tmp_path: Path) -> None:
    async def take() -> None:
        async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state") as taken:
            # More than a pipe holds: without a reader this ends in EPIPE, never in a hang.
            with contextlib.suppress(BrokenPipeError):
                await asyncio.wait_for(asyncio.to_thread(_write, lender.fd, b"garbage!" * 1_000_000), 20.0)
            await taken.first_page()

    with pytest.raises(Corrupt):
        await take()
    assert list(tmp_path.iterdir()) == []


@story
async def test_a_failure_inside_leaves_no_file_and_no_thread(lender: Lender, tmp_path: Path) -> None:
    """The migration never begins: QEMU holds the pipe until it is told to close it."""
    with pytest.raises(TimeoutError):
        async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state"):
            raise TimeoutError
    assert lender.fd == -1
    assert list(tmp_path.iterdir()) == []


@story
async def test_a_pipe_that_cannot_be_lent_leaves_nothing(lender: Lender, tmp_path: Path) -> None:
    lender.refuse = True
    with pytest.raises(ConnectionError):
        async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state"):
            pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


@story
async def test_a_target_that_takes_no_more_is_a_store_error(lender: Lender, tmp_path: Path) -> None:
    async def take() -> None:
        async with intake.open_intake(lender.session, tmp_path / "memory", tmp_path / "state") as taken:
            with contextlib.suppress(BrokenPipeError):
                await asyncio.to_thread(_write, lender.fd, _stream(FIRST))
            lender.close()
            await taken.finish()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * PAGE, limits[1]))
    try:
        with pytest.raises(StoreError) as caught:
            await take()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.on == str(tmp_path / "memory")
    assert list(tmp_path.iterdir()) == []


@story
async def test_a_folder_that_is_not_there_is_a_store_error(lender: Lender, tmp_path: Path) -> None:
    async def take() -> None:
        missing = tmp_path / "missing" / "memory"
        async with intake.open_intake(lender.session, missing, tmp_path / "state") as taken:
            with contextlib.suppress(BrokenPipeError):
                await asyncio.to_thread(_write, lender.fd, _stream(FIRST))
            lender.close()
            await taken.first_page()

    with pytest.raises(StoreError) as caught:
        await take()
    assert caught.value.on == str(tmp_path / "missing" / "memory")
