"""What a process has to itself, and what for (bench/private.py), seen in this one."""

from __future__ import annotations

import mmap
import os

from bench.private import PARTS, private_bytes, private_parts, private_ram_bytes
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


def test_each_part_by_itself_and_no_page_twice() -> None:
    before = private_parts(os.getpid(), RAM)
    code = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, RAM, PRIVATE) as ram, mmap.mmap(-1, 8 * MIB, PRIVATE, code) as translated:
        ram.madvise(mmap.MADV_NOHUGEPAGE)
        ram.write(b"x" * (4 * MIB))
        translated.write(b"x" * (2 * MIB))
        after = private_parts(os.getpid(), RAM)
        assert tuple(after) == PARTS
        assert after["ram"] - before["ram"] == 4 * MIB
        assert after["translated"] - before["translated"] == 2 * MIB
        assert after["page_tables"] > before["page_tables"]  # 4 MiB of small pages: two tables
        pages = sum(size for part, size in after.items() if part != "page_tables")
        assert abs(pages - private_bytes(os.getpid())) < MIB  # this process allocates while it looks
