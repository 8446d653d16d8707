"""What a process in the guest sees of a snapshot: the longest time for which it did not run.

The guest cannot tell by its own clocks. Under emulation they all derive from QEMU's virtual clock, which stands still
with the machine and is carried over in the device state; under KVM the clocks are restored likewise. A process
that reads CLOCK_MONOTONIC in a loop therefore sees no gap at all, and CLOCK_REALTIME shows when the agent set it,
not when the guest stood. So the guest shows signs of life, and the host's clock dates them:

    guest_load.py tick:  a byte every millisecond -> /dev/ttyS0 -> QEMU -> console.log -> inotify -> this process

The serial port is the one way out that is there all the time: the NIC is unplugged for the snapshot, and the agent's
ports belong to the agent. QEMU writes each byte to the log at once, whether or not anybody is connected to the console,
and the successor of a handover appends to the same file.

The gap holds more than the pause: a tick is due only every millisecond (two, with the guest's timer), after a handover
the emulator translates all code anew, and whatever else the snapshot makes the guest do (unplugging and plugging
its NIC, new randomness) takes its one processor from the process that ticks. `guest_gap_idle` is the same
measurement over the same time without a snapshot: what this host does to a guest anyway.

The clock runs in a process of its own (`python -m bench.ticks FILE`), so that our event loop does not delay the clock. It
answers each line on stdin with one JSON object, about the time since the line before.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import select
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .guest_load import TICK

IN_MODIFY = 0x2  # inotify(7)
ANSWER_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Seen:
    """The ticks of some time."""

    longest_s: float
    ticks: int
    lasted_s: float


class Watch:
    """A watch on a machine's ticks; use `open_watch`."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def take(self) -> Seen:
        """Return what was seen since the last call, and begin anew."""
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(b"\n")
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            return Seen(**json.loads(await self._child.stdout.readline()))


@contextlib.asynccontextmanager
async def open_watch(console_log: Path) -> AsyncIterator[Watch]:
    """Watch the ticks that come into a console log; returns at the first one.

    Raises:
        TimeoutError: none came.
    """
    argv = [sys.executable, "-P", "-m", __name__, str(console_log)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, env=environment)
    try:
        watch = Watch(child)
        await watch.take()  # its answer waits for the first tick
        yield watch
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def watch(console_log: Path) -> None:
    """Be that process: until stdin ends, date the ticks and answer."""
    with contextlib.suppress(OSError):
        os.nice(-10)  # where we may: a tick should not wait for us
    log = os.open(console_log, os.O_RDONLY)
    os.lseek(log, 0, os.SEEK_END)
    events = watch_writes(console_log)
    longest = began = last = 0.0
    ticks = 0
    while True:
        readable = select.select([events, sys.stdin], [], [])[0]
        now = time.monotonic()
        if events in readable:
            os.read(events, 4096)
            new = os.read(log, 65536).count(TICK)
            if new:
                longest = max(longest, now - last) if last else 0.0
                ticks, last, began = ticks + new, now, began or now
        if sys.stdin in readable and last:
            if not os.read(sys.stdin.fileno(), 1):
                return
            # A gap that has not ended yet counts too.
            seen = Seen(max(longest, now - last), ticks, now - began)
            print(json.dumps(asdict(seen)), flush=True)
            longest, ticks, began = 0.0, 0, now


def watch_writes(path: Path) -> int:
    """Return a descriptor that has something to read whenever the file was written to."""
    libc = ctypes.CDLL(None, use_errno=True)
    events: int = libc.inotify_init1(os.O_CLOEXEC)
    if events < 0 or libc.inotify_add_watch(events, os.fsencode(path), IN_MODIFY) < 0:
        raise OSError(ctypes.get_errno(), "inotify", str(path))
    return events


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is for all of the bench; it ends us
        watch(Path(sys.argv[1]))
