"""Whether this host can carry what is asked, before anything is started.

A clone shares the memory image, so it costs what it writes. How much that will be nobody knows; assumed are
`OVERHEAD` for QEMU itself (30 MiB measured, idle) and a share of the RAM that an active clone dirties. What must stay
free is `Settings.reserve_bytes`. A user who knows better says --overcommit.
"""

from __future__ import annotations

import contextlib
import os

from ..errors import Refused
from ..host import machine as host
from ..model.machine import Machine, MemorySource
from ..model.snapshot import Snapshot
from ..units import MIB, render_size
from .context import Context

OVERHEAD = 64 * MIB
WRITTEN_SHARE = 0.15
LEAST_RESERVE = 256 * MIB


def side_by_side() -> int:
    """Return how many clones may come up at once: two for each processor keeps both it and the disk busy."""
    return 2 * (os.cpu_count() or 1)


def check_clones(ctx: Context, snapshot: Snapshot, count: int) -> None:
    """Raise Refused unless `count` clones of the snapshot fit into the memory that is available."""
    each = OVERHEAD + int(snapshot.hardware.ram_bytes * WRITTEN_SHARE)
    _check(ctx, count * each, f"{count} clones of {snapshot.name} at about {render_size(each)} each", each)


def check_boot(ctx: Context, ram_bytes: int) -> None:
    """Raise Refused unless a machine with its whole RAM fits."""
    _check(ctx, OVERHEAD + ram_bytes, f"a machine with {render_size(ram_bytes)}", 0)
    check_hot(ctx, ram_bytes, f"a machine with {render_size(ram_bytes)}")


def check_capture(ctx: Context, machine: Machine) -> None:
    """Raise Refused unless a second image of the machine's memory fits into the hot folder.

    Besides the image itself that is what its present RAM file has holes for: a capture reads every page, and a hole
    of a tmpfs file takes a page when it is read (docs/adr/0001).
    """
    ram_bytes = machine.hardware.ram_bytes
    holes = 0
    if machine.memory is not None and machine.memory.source is not MemorySource.PRIVATE_DISK:
        with contextlib.suppress(FileNotFoundError):  # its snapshot was removed: no name any more
            holes = max(ram_bytes - os.stat(machine.memory.path).st_blocks * 512, 0)
    check_hot(ctx, ram_bytes + holes, f"the memory image of {machine.name}")


def check_copies(ctx: Context, machine: Machine) -> None:
    """Raise Refused unless copies of the machine's disks fit beside our snapshots."""
    needed = 0
    for disk in machine.disks:
        with contextlib.suppress(OSError):  # the capture says what is wrong with it
            needed += os.stat(disk.path).st_blocks * 512
    free = host.file_system(ctx.layout.snapshots).free_bytes
    if free < needed:
        raise Refused(
            f"there is no room for a copy of the disks of {machine.name}",
            code="no-room",
            tried="checking the room for a snapshot",
            on=str(ctx.layout.snapshots),
            seen=f"{render_size(needed)} needed, {render_size(free)} free",
            source_state="running, not touched",
            next_step="remove snapshots, or set LIVECLONE_HOME to a larger file system",
        )


def check_hot(ctx: Context, needed: int, what: str) -> None:
    """Raise Refused unless a file of `needed` bytes fits into the hot folder.

    A tmpfs that runs full does not only fail our write: every QEMU whose guest then touches a new page of its RAM
    file is killed (SIGBUS). So what could fill it is refused beforehand.
    """
    found = host.file_system(ctx.layout.hot)
    if found.free_bytes >= needed:
        return
    raise Refused(
        f"the hot folder has no room for {what}",
        code="hot-full",
        tried="checking the hot folder",
        on=str(ctx.layout.hot),
        seen=f"{render_size(needed)} needed, {render_size(found.free_bytes)} free",
        source_state="not touched",
        next_step="remove snapshots or machines, or set LIVECLONE_HOT to a larger tmpfs",
    )


def _check(ctx: Context, needed: int, what: str, each: int) -> None:
    memory = host.memory()
    reserve = ctx.settings.reserve_bytes
    if reserve is None:
        reserve = max(LEAST_RESERVE, memory.total_bytes // 20)
    free = memory.available_bytes - reserve
    if needed <= free:
        return
    advice = f"ask for at most {max(free, 0) // each}, or add --overcommit" if each else "ask for less memory"
    raise Refused(
        f"not enough memory for {what}",
        code="no-memory",
        tried="checking the host's memory",
        on=what,
        seen=f"{render_size(needed)} needed, {render_size(max(free, 0))} free beyond the {render_size(reserve)} kept",
        source_state="not touched",
        next_step=advice,
    )
