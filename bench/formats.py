"""split_speed and join_speed beside copy_speed: how fast a migration stream becomes a memory image, and one of it again.

    copy_speed     MiB/s of stream, by cp(1) from one file on tmpfs to another
    split_speed    MiB/s of stream, read from the same file, split, and its pages written to their places in another
    join_speed     MiB/s of joined stream, of that image and the state, written to a third
    split_load     the host's load average, over the last minute, while it was measured

`stream` says who wrote it: `qemu`, a machine of 1 GiB whose memory was filled and which never ran; or `generated`, the same
memory in QEMU's format, each page sent once and every eighth a second time. Both have a row of pages with data, 160 KiB
long in the middle, then a row of empty ones, half as long. Copied, split and joined by turns, so that others' work meets
all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from liveclone.formats import stream_join
from liveclone.formats.migration_stream import Splitter
from liveclone.host import files
from liveclone.host import machine as host
from liveclone.units import GIB, MIB, PAGE

from .lab import Lab

RAM_MIB = 1024
ROUNDS = 7
PIECE = MIB
_NO_DATA = 16 * MIB  # firmware's and the processor's own; left alone


async def measure(lab: Lab) -> None:
    """Measure both streams."""
    if host.memory().available_bytes < 5 * GIB:
        lab.say("  [yellow]left out: splitting a stream: no room for three images[/]")
        return
    folder = lab.ctx.layout.hot
    folder.mkdir(parents=True, exist_ok=True)
    for kind, write in (("qemu", write_by_qemu), ("generated", write_generated)):
        lab.say(f"splitting and joining a stream, {kind}")
        stream = folder / f"{kind}.stream"
        try:
            await asyncio.to_thread(write, stream)
            size_mib = stream.stat().st_size / MIB
            for _ in range(ROUNDS):
                copied_s = await asyncio.to_thread(_copy, stream, folder / "copy")
                split_s, joined_s, joined_mib = await asyncio.to_thread(split_and_join, stream, folder)
                for series, unit, value in (
                    ("copy_speed", "MiB/s", size_mib / copied_s),
                    ("split_speed", "MiB/s", size_mib / split_s),
                    ("join_speed", "MiB/s", joined_mib / joined_s),
                    ("split_load", "", os.getloadavg()[0]),
                ):
                    lab.recorder.add(
                        series, unit, value, ram_mib=RAM_MIB, touched_mib=size_mib, clones=0, stream=kind
                    )
        finally:
            stream.unlink(missing_ok=True)


def split_and_join(stream: Path, folder: Path) -> tuple[float, float, float]:
    """Split `stream` into an image, join that, remove both; return the seconds of each, and the MiB of what was joined."""
    image, joined = folder / "image", folder / "joined"
    try:
        began = time.perf_counter()
        state = _split(stream, image)
        split_at = time.perf_counter()
        _join(state, image, joined)
        joined_at = time.perf_counter()
        return split_at - began, joined_at - split_at, joined.stat().st_size / MIB
    finally:
        image.unlink(missing_ok=True)
        joined.unlink(missing_ok=True)


def _split(stream: Path, image: Path) -> bytes:
    splitter = Splitter("pc.ram")
    with stream.open("rb", buffering=0) as source, image.open("xb", buffering=0) as target:
        while data := source.read(PIECE):
            for run in splitter.feed(data):
                if run.data is not None:
                    os.pwrite(target.fileno(), run.data, run.offset)
        target.truncate(splitter.block_bytes)
    return splitter.finish()


def _join(state: bytes, image: Path, joined: Path) -> None:
    size = image.stat().st_size
    with image.open("rb", buffering=0) as source, joined.open("xb", buffering=0) as target:
        for piece in stream_join.join(state, files.read_data(source.fileno(), size), size_bytes=size):
            target.write(piece)


def _copy(stream: Path, copy: Path) -> float:
    began = time.perf_counter()
    try:
        subprocess.run(["cp", stream, copy], check=True)
        return time.perf_counter() - began
    finally:
        copy.unlink(missing_ok=True)


def _rows() -> Iterator[tuple[int, int]]:
    """Yield (first page, pages) of each row with data."""
    luck, at = random.Random(1), _NO_DATA // PAGE
    while True:
        length = 1 + int(luck.expovariate(1 / 40))
        if at + length > RAM_MIB * MIB // PAGE:
            return
        yield at, length
        at += length + 1 + int(luck.expovariate(1 / 20))


def write_by_qemu(stream: Path) -> None:
    """Have QEMU load the rows into a machine's memory, and write it."""
    contents = stream.with_suffix(".memory")
    try:
        with contents.open("wb") as file:
            for first, pages in _rows():
                file.seek(first * PAGE - _NO_DATA)
                file.write(os.urandom(PAGE) * pages)
        argv = [
            "qemu-system-x86_64",
            "-nodefaults",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-machine",
            "q35",
            "-S",
        ]
        argv += ["-m", f"{RAM_MIB}M", "-monitor", "stdio"]
        argv += ["-device", f"loader,file={contents},addr={_NO_DATA:#x},force-raw=on"]
        commands = f"migrate_set_parameter max-bandwidth 100G\nmigrate file:{stream}\nquit\n"
        subprocess.run(argv, input=commands, text=True, check=True, capture_output=True)
    finally:
        contents.unlink(missing_ok=True)


def write_generated(stream: Path) -> None:
    """Write the same, in the format."""
    total = RAM_MIB * MIB // PAGE
    full = {page for first, pages in _rows() for page in range(first, first + pages)}
    data, end = os.urandom(PAGE), struct.pack(">Q", 0x10)
    footer = b"\x7e" + struct.pack(">I", 2)
    with stream.open("wb") as file:
        file.write(b"QEVM" + struct.pack(">I", 3) + b"\7" + struct.pack(">I", 3) + b"q35")
        file.write(b"\1" + struct.pack(">I", 2) + b"\3ram" + struct.pack(">II", 0, 4))
        file.write(
            struct.pack(">Q", total * PAGE | 4) + b"\6pc.ram" + struct.pack(">Q", total * PAGE) + end + footer
        )
        file.write(b"\2" + struct.pack(">I", 2) + struct.pack(">Q", 2) + b"\6pc.ram\0")
        for page in (*range(1, total), *sorted(full)[::8]):
            head = struct.pack(">Q", page * PAGE | 0x20 | (8 if page in full else 2))
            file.write(head + (data if page in full else b"\0"))
        file.write(end + footer + b"\3" + struct.pack(">I", 2) + end + footer)
        file.write(b"\4" + struct.pack(">I", 7) + b"\0\6" + struct.pack(">I", 2) + b"{}")
