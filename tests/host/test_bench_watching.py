"""A load seen from outside (bench/watching.py), and what a process costs the kernel (bench/qemu_work.py)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import guest_load, qemu_work, watching
from bench.seconds import Work
from liveclone.units import MIB, PAGE

ROOT = Path(__file__).resolve().parents[2]


def serve(port: int) -> subprocess.Popen[bytes]:
    """Be the guest's server, with its own words; returns when it listens."""
    program = f"""
        import mmap, socket
        from bench import guest_load
        listener = socket.create_server(("127.0.0.1", {port}))
        print("ready", flush=True)
        guest_load.serve(listener, mmap.mmap(-1, 4 * guest_load.BODY))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


@contextlib.contextmanager
def serving(port: int) -> Iterator[None]:
    with serve(port) as child:
        try:
            yield
        finally:
            child.kill()


def test_pages_are_asked_for_one_after_another_also_of_a_server_that_comes_again(port: int) -> None:
    pages = watching.request_pages("127.0.0.1", port)
    with serving(port):
        first = [next(pages) for _ in range(20)]
    assert all(work is not None and work[0] < work[1] for work in first)
    assert next(pages) is None  # it is gone
    with serving(port):
        second = next(work for work in pages if work is not None)
    assert first[-1] is not None
    assert second[0] == first[-1][1]  # since then it was waited for


def test_signs_on_a_console_are_dated_and_all_counted(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"before")
    signs = watching.read_signs(log)
    assert next(signs) is None
    found: list[Work] = []
    with log.open("ab", buffering=0) as console:
        for text in (guest_load.TICK, b"[ 1.0] a word of the kernel's", guest_load.TICK * 3):
            console.write(text)
            while (work := next(signs)) is not None:
                found.append(work)
    while work := next(signs):
        found.append(work)
    assert len(found) == 3  # between four signs
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found))


def test_a_watch_in_a_process_of_its_own_says_what_it_saw(port: int) -> None:
    async def watch() -> list[Work]:
        async with watching.open_watch("http", "127.0.0.1", str(port)) as seen:
            return await seen.end()

    with serving(port):
        works = asyncio.run(watch())
    assert works
    assert all(began < ended for began, ended in works)


def test_touched_pages_are_faults_and_what_may_be_written_and_run_is_code() -> None:
    before = qemu_work.read(os.getpid())
    rights = mmap.PROT_READ | mmap.PROT_WRITE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with (
        mmap.mmap(-1, 8 * MIB, private, rights) as data,
        mmap.mmap(-1, MIB, private, rights | mmap.PROT_EXEC) as code,
    ):
        data.madvise(mmap.MADV_NOHUGEPAGE)
        for place in range(0, 8 * MIB, PAGE):
            data[place] = 1
        code[: 16 * PAGE] = b"x" * (16 * PAGE)
        after = qemu_work.read(os.getpid())
    assert after.faults - before.faults >= 8 * MIB // PAGE
    assert after.code_bytes - before.code_bytes == 16 * PAGE
    assert after.kernel_s >= before.kernel_s
