"""What the host does for a machine beside running it: its QEMU's page faults, time in the kernel, translated code.

    faults       pages that its QEMU touched and did not have yet: proc(5), minflt and majflt of /proc/PID/stat
    user_s       seconds of a processor that it had for itself (running the guest; under emulation translating it too): utime
    kernel_s     seconds of a processor that the kernel spent for it: stime
    code_bytes   under emulation: the guest's code as translated by now: the memory that QEMU may both write and run

At a handover the process is another, so all that work for the home are counted together, also those that have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from liveclone.host import process
from liveclone.units import KIB

EVERY_S = 0.5
# Fields 10 (minflt), 12 (majflt), 14 (utime) and 15 (stime), counted behind the name in parentheses: proc(5).
_MINOR, _MAJOR, _UTIME, _STIME = 7, 9, 11, 12

Samples = list[tuple[float, float]]


@dataclass(frozen=True)
class Counters:
    """What one process has had so far; see the module."""

    faults: int
    user_s: float
    kernel_s: float
    code_bytes: int


@dataclass
class Sampler:
    """Counters with the times at which they were read."""

    faults: Samples = field(default_factory=list)
    user_s: Samples = field(default_factory=list)
    kernel_s: Samples = field(default_factory=list)
    code_bytes: Samples = field(default_factory=list)
    _last: dict[int, Counters] = field(default_factory=dict)

    def read(self, home: Path) -> None:
        """Read them now."""
        for pid, line in process.find(str(home)):
            if "qemu-system" in line.partition(" ")[0]:
                with contextlib.suppress(OSError):  # it has just ended; what was read last stands
                    self._last[pid] = read(pid)
        now = time.monotonic()
        for name, samples in (
            ("faults", self.faults),
            ("user_s", self.user_s),
            ("kernel_s", self.kernel_s),
            ("code_bytes", self.code_bytes),
        ):
            samples.append((now, sum(getattr(counters, name) for counters in self._last.values())))


def read(pid: int) -> Counters:
    """Read the counters of one process.

    Raises:
        OSError: it is gone.
    """
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(") ")[2].split()
    code, counts = 0, False
    for line in (folder / "smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = " rwxp " in line
        elif counts and line.startswith("Rss:"):
            code += int(line.split()[1]) * KIB
    hertz = os.sysconf("SC_CLK_TCK")
    return Counters(
        faults=int(fields[_MINOR]) + int(fields[_MAJOR]),
        user_s=int(fields[_UTIME]) / hertz,
        kernel_s=int(fields[_STIME]) / hertz,
        code_bytes=code,
    )


@contextlib.asynccontextmanager
async def open_sampler(home: Path) -> AsyncIterator[Sampler]:
    """Read them twice a second until the end of the block."""
    sampler = Sampler()

    async def go_on() -> None:
        while True:
            await asyncio.to_thread(sampler.read, home)
            await asyncio.sleep(EVERY_S)

    task = asyncio.create_task(go_on())
    try:
        yield sampler
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
