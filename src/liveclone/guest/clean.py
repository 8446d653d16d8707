"""Clean what is free: blocks of the disks, then pages of memory. Both still hold what was in them when they were freed.

    blocks   a file of zeros takes all there are, step by step, and goes; then FITRIM discards them
    pages    caches are dropped, then all free pages are taken, which the kernel clears for whoever takes them

FITRIM alone would do for large free areas only: a hypervisor discards whole clusters (64 KiB), and a deleted file may lie
in one beside others. The file system is full for the moment in which the last step is written; the system is short of
memory for none: pages are taken as long as there are free ones, and nobody has to make room.

Whoever asked may not want it any more, and tells so by `go_on`, which raises: all is as it was then, a step later.

Sources: FITRIM of linux/fs.h; /proc/sys/vm (Documentation/admin-guide/sysctl/vm.rst): min_free_kbytes, lowmem_reserve_ratio,
percpu_pagelist_high_fraction, drop_caches, compact_memory; /proc/zoneinfo (proc(5)).
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import struct
from contextlib import ExitStack, nullcontext, suppress

from .settings import changed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    GoOn = Callable[[], None]

_FITRIM = 0xC0185879  # _IOWR('X', 121, struct fstrim_range)
_FILLER = ".liveclone-zeros"
_FILE_STEP = 8 * 1024 * 1024
_LAST_STEP = 4096
_MOST_FILLED = 8 * 1024 * 1024 * 1024  # of one file system; a larger one is only trimmed, and that is said

_MEMORY_STEP = 512 * 1024
_LAST_MEMORY_STEP = 64 * 1024
_LEFT_BYTES = 512 * 1024  # of free memory, besides what the kernel keeps for itself
_PIPES, _PIPE_BYTES, _PIPE_STEP = 4, 1024 * 1024, 65536
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, linux/fcntl.h
_ROUNDS = 2  # what is left over is in other places after each
_POPULATE = 0x8000  # MAP_POPULATE, linux/mman.h; in Python 3.10 and later
_VM = "/proc/sys/vm"
_NO_LISTS = "1000000"  # the fraction of a zone's pages that a processor may have in lists of its own: the least there can be


def clean_disks(go_on: GoOn) -> list[dict[str, Any]]:
    """Clean the free blocks of all file systems on disks that can be written; return what was done with each."""
    seen = set()
    done = []
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        entries = [line.split() for line in mounts]
    for device, place, _, options, *_ in entries:
        if not device.startswith("/dev/") or device in seen or "ro" in options.split(","):
            continue
        seen.add(device)
        place = place.encode("utf-8", "surrogateescape").decode("unicode_escape")
        facts = os.statvfs(place)
        is_filled = facts.f_bfree * facts.f_frsize <= _MOST_FILLED
        filled = 0
        if is_filled:
            with _without_reserve(place):
                filled = _fill(place, go_on)
        go_on()
        os.sync()  # FITRIM takes what was freed for free when the journal says so
        done.append({"place": place, "filled": is_filled, "bytes": filled, "trimmed_bytes": _trim(place)})
    return done


def _without_reserve(place: str) -> AbstractContextManager[None]:
    """Let the file system give out in the block what it keeps for its own use: ext4 keeps up to 16 MiB, even from root."""
    device = os.stat(place).st_dev
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    path = f"/sys/fs/ext4/{name}/reserved_clusters"
    return changed({path: 0}) if os.path.exists(path) else nullcontext()


def _fill(place: str, go_on: GoOn) -> int:
    """Write zeros until there is no free block; return how many bytes."""
    path = os.path.join(place, _FILLER)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError:  # a file system that has no such thing
        fd = os.open(path, flags | os.O_DSYNC, 0o600)
    zeros = mmap.mmap(-1, _FILE_STEP)  # begins at a page, as O_DIRECT wants it
    try:
        os.unlink(path)  # whatever happens to us, it goes
        size, done = _FILE_STEP, 0
        while size >= _LAST_STEP:
            go_on()
            try:
                done += os.writev(fd, [memoryview(zeros)[:size]])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
        return done
    finally:
        os.close(fd)


def _trim(place: str) -> int:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer: bytes = fcntl.ioctl(fd, _FITRIM, struct.pack("QQQ", 0, (1 << 64) - 1, 0))
        trimmed: int = struct.unpack("QQQ", answer)[1]
        return trimmed
    except OSError:
        return 0  # this file system, or its disk, has no such thing; the zeros are there
    finally:
        os.close(fd)


def fill_memory(go_on: GoOn) -> int:
    """Drop caches, then take all free memory for a moment; return how many bytes."""
    most = 0
    with changed(_least_kept()):
        for _ in range(_ROUNDS):
            _write("drop_caches", "3")
            _write("compact_memory", "1")
            most = max(most, _take_all(go_on))
    return most


def _least_kept() -> dict[str, int | str]:
    """Return what lets the kernel keep as little for itself as it can: that would not be cleaned."""
    wanted: dict[str, int | str] = {f"{_VM}/min_free_kbytes": 256}
    zones = len(_read("lowmem_reserve_ratio").split())
    wanted[f"{_VM}/lowmem_reserve_ratio"] = "\t".join(["0"] * zones)
    for name, value in (
        ("watermark_scale_factor", 1),  # Linux 4.6
        ("percpu_pagelist_fraction", _NO_LISTS),  # before Linux 5.14
        ("percpu_pagelist_high_fraction", _NO_LISTS),
    ):
        if os.path.exists(f"{_VM}/{name}"):
            wanted[f"{_VM}/{name}"] = value
    return wanted


def _take_all(go_on: GoOn) -> int:
    """Take all free memory, in turn on each processor: each has lists of free pages that no other one takes from.

    Not more than there was: what the kernel frees meanwhile it takes from programs, which would want it back at once, and
    again and again (seen: minutes).
    """
    processors = os.sched_getaffinity(0)
    turns = itertools.cycle(sorted(processors))
    taken = 0
    step = _MEMORY_STEP
    with ExitStack() as given_back:
        given_back.callback(os.sched_setaffinity, 0, processors)
        _fill_pipes(given_back, turns)
        most = _free_bytes() - _LEFT_BYTES
        while taken < most:
            go_on()
            while step > _LAST_MEMORY_STEP and _free_bytes() < _LEFT_BYTES + step:
                step //= 2
            if _free_bytes() < _LEFT_BYTES + step:
                break
            os.sched_setaffinity(0, {next(turns)})
            piece = mmap.mmap(-1, step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _POPULATE)
            given_back.callback(piece.close)
            taken += step
    return taken


def _fill_pipes(given_back: ExitStack, turns: Iterator[int]) -> None:
    """Take pages of the kind that the kernel keeps for its own buffers; a program is given those last, or never."""
    for _ in range(_PIPES):
        if _free_bytes() < _LEFT_BYTES + _PIPE_BYTES:
            return
        for fd in (pipe := os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)):
            given_back.callback(os.close, fd)
        fcntl.fcntl(pipe[1], _SET_PIPE_SIZE, _PIPE_BYTES)
        with suppress(BlockingIOError):  # it is full
            while True:
                os.sched_setaffinity(0, {next(turns)})
                os.write(pipe[1], bytes(_PIPE_STEP))


def _free_bytes() -> int:
    """Return the memory that is free above the mark under which the kernel would take some from others."""
    total = free = high = 0
    with open("/proc/zoneinfo", encoding="ascii") as file:
        for line in file:
            words = line.replace("(", "").replace(")", "").replace(",", "").split()
            if words[:2] == ["pages", "free"]:
                free = int(words[2])
            elif words[:1] == ["high"]:
                high = int(words[1])
            elif words[:1] == ["protection:"]:  # the last of a zone that counts here
                total += max(0, free - high - max(map(int, words[1:])))
    return total * mmap.PAGESIZE


def _read(name: str) -> str:
    with open(f"{_VM}/{name}", encoding="ascii") as file:
        return file.read()


def _write(name: str, text: str) -> None:
    with open(f"{_VM}/{name}", "w", encoding="ascii") as file:
        file.write(text)
