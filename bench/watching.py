"""What a load in the guest gets done, as seen from outside, by the host's clock; in a process of its own.

    python -m bench.watching http ADDRESS PORT     one request after another over one connection, made anew when it breaks
    python -m bench.watching console FILE          the signs on the guest's serial console (ticks.py tells why there)

A line on its stdin ends it; it then writes all pieces of work, [began, ended] each, to its stdout as JSON. When it has
seen the first it says so there. It asks for little: an HTTP client of a few lines, as the guest is to be the slower one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from . import ticks
from .guest_load import REQUEST, TICK
from .seconds import Work

START_DEADLINE_S = 30.0
END_DEADLINE_S = 30.0
ANSWER_DEADLINE_S = 5.0  # then the connection counts as broken
AGAIN_S = 0.05


class Watch:
    """A load being watched; use `open_watch`."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def end(self) -> list[Work]:
        """Return all that was done since it began, and watch no more."""
        async with asyncio.timeout(END_DEADLINE_S):
            out, _ = await self._child.communicate(b"\n")
        return [(began, ended) for began, ended in json.loads(out)]


@contextlib.asynccontextmanager
async def open_watch(*arguments: str) -> AsyncIterator[Watch]:
    """Watch a load; returns when it was seen to work.

    Raises:
        TimeoutError: it does not.
    """
    argv = [sys.executable, "-P", "-m", __name__, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, env=environment)
    try:
        assert child.stdout
        async with asyncio.timeout(START_DEADLINE_S):
            await child.stdout.readline()
        yield Watch(child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def request_pages(address: str, port: int) -> Iterator[Work | None]:
    """Ask for one page after another, and yield when each was asked for and there; None where a wait came to nothing."""
    began = time.monotonic()
    while True:
        try:
            with socket.create_connection((address, port), ANSWER_DEADLINE_S) as connection:
                while True:
                    connection.sendall(REQUEST)
                    _read_answer(connection)
                    ended = time.monotonic()
                    yield began, ended
                    began = ended
        except OSError:
            # It is asked for again: a piece of work that began when it was first wanted.
            yield None
            time.sleep(AGAIN_S)


def _read_answer(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += _receive(connection)
    head, _, body = head.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    missing = length - len(body)
    while missing > 0:
        missing -= len(_receive(connection))


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the guest closed the connection")
    return data


def read_signs(console_log: Path) -> Iterator[Work | None]:
    """Yield the work between one sign on the console and the next; None where something else was written."""
    log = os.open(console_log, os.O_RDONLY)
    os.lseek(log, 0, os.SEEK_END)
    events = ticks.watch_writes(console_log)
    last = 0.0
    while True:
        if not select.select([events], [], [], AGAIN_S)[0]:
            yield None
            continue
        now = time.monotonic()
        os.read(events, 4096)
        new = os.read(log, 65536).count(TICK)
        if last and new:
            # Several that came at once were spread evenly, as far as we know.
            step = (now - last) / new
            yield from ((last + i * step, last + (i + 1) * step) for i in range(new))
        last = now if new else last
        yield None


def main(kind: str, *arguments: str) -> None:
    """Be that process."""
    with contextlib.suppress(OSError):
        os.nice(-10)  # where we may: the load should not wait for us
    works: list[Work] = []
    source = (
        request_pages(arguments[0], int(arguments[1])) if kind == "http" else read_signs(Path(arguments[0]))
    )
    for work in source:
        if work is not None:
            if not works:
                print("working", flush=True)
            works.append(work)
        if works and select.select([sys.stdin], [], [], 0)[0]:
            json.dump(works, sys.stdout)
            return


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is for all of the bench; it ends us
        main(*sys.argv[1:])
