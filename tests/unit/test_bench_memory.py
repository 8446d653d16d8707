"""What a process has to itself of a guest's RAM (bench/crowd.py), seen in this one."""

from __future__ import annotations

import mmap
import os

from bench.crowd import private_ram_bytes
from liveclone.units import MIB

RAM = 512 * MIB
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def test_only_what_was_written_counts_and_only_in_ram() -> None:
    before = private_ram_bytes(os.getpid(), RAM)
    code = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, RAM, PRIVATE) as ram, mmap.mmap(-1, RAM // 8, PRIVATE) as small:
        ram.madvise(mmap.MADV_NOHUGEPAGE)
        ram.write(b"x" * (3 * MIB))
        small.write(b"x" * MIB)
        with mmap.mmap(-1, RAM, PRIVATE, code) as translated:
            translated.write(b"x" * MIB)
            assert private_ram_bytes(os.getpid(), RAM) - before == 3 * MIB
