"""Print a log, and go on as it grows."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

from ..engine.context import Context
from ..engine.turns import find_again
from ..errors import LivecloneError
from ..host import process
from ..model.machine import Machine
from . import streams

_CHUNK = 64 * 1024


async def print_log(log: Path, tail: int) -> int:
    """Print the log, or its last lines; return how far it reached."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        if tail >= 0:
            for line in deque(file, maxlen=tail):
                await streams.write_out(line)
        else:
            while data := file.read(_CHUNK):
                await streams.write_out(data)
        return file.tell()


async def follow(ctx: Context, machine: Machine, log: Path, position: int) -> None:
    """Go on from `position` until no process of the machine is left, and all that it wrote is printed.

    tail(1) waits for the file to grow as the kernel tells it (inotify), and for it to appear.
    """
    log.touch(mode=0o600)
    tail = await asyncio.create_subprocess_exec(
        *("tail", "-c", f"+{position + 1}", "-F", str(log)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert tail.stdout is not None
    ended = asyncio.ensure_future(_ended(ctx, machine))
    size: int | None = None
    try:
        while size is None or position < size:
            reading = asyncio.ensure_future(tail.stdout.read(_CHUNK))
            await asyncio.wait(
                {reading, ended} if size is None else {reading}, return_when=asyncio.FIRST_COMPLETED
            )
            if not reading.done():
                # Everything that was written has been written: once so much is read, that was all.
                size = log.stat().st_size
                if position >= size:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                    return
            data = await reading
            if not data:
                return
            await streams.write_out(data)
            position += len(data)
            if ended.done() and size is None:
                size = log.stat().st_size
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        tail.kill()
        await tail.wait()


async def _ended(ctx: Context, machine: Machine) -> None:
    """Return when no process of the machine is left; a handover replaces it."""
    while machine.process is not None:
        await process.wait(machine.process, float("inf"))
        try:
            machine = await find_again(ctx, machine, LivecloneError("its process ended"))
        except LivecloneError:
            return
