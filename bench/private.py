"""What a process has in memory to itself, and what for (proc(5): smaps).

    ram          of its guest's RAM: what was written of a mapping as large as that, or larger
    translated   the guest's code as the emulator has translated it: memory that can be written and run
    heap         other memory without a file: the allocator's, stacks
    program      of QEMU and its libraries: what was relocated
    page_tables  what the kernel needs to map it all; VmPTE of status, not among the private pages

What it shares with others (a memory image, QEMU's program) is in none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from liveclone.units import KIB

PARTS = ("ram", "translated", "heap", "program", "page_tables")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)")
_PRIVATE = re.compile(r"Private_(?:Clean|Dirty|Hugetlb): +(\d+) kB")


def private_bytes(pid: int) -> int:
    """Return what only this process has in memory."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(private[1]) * KIB for private in map(_PRIVATE.match, text.splitlines()) if private)


def private_ram_bytes(pid: int, ram_bytes: int) -> int:
    """Return what only this process has of its guest's RAM."""
    return sum(size for part, size in _mappings(pid, ram_bytes) if part == "ram")


def private_parts(pid: int, ram_bytes: int) -> dict[str, int]:
    """Return the bytes of each of PARTS."""
    found = dict.fromkeys(PARTS, 0)
    for part, size in _mappings(pid, ram_bytes):
        found[part] += size
    status = Path(f"/proc/{pid}/status").read_text()
    found["page_tables"] = sum(
        int(kib) * KIB for kib in re.findall(r"^VmPTE:\s+(\d+) kB", status, re.MULTILINE)
    )
    return found


def _mappings(pid: int, ram_bytes: int) -> Iterator[tuple[str, int]]:
    part = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := _MAPPING.match(line):
            size, access, inode = int(mapping[2], 16) - int(mapping[1], 16), mapping[3], int(mapping[4])
            if access.startswith("rw-") and size >= ram_bytes:
                part = "ram"
            elif inode:
                part = "program"
            else:
                part = "translated" if access.startswith("rwx") else "heap"
        elif private := _PRIVATE.match(line):
            yield part, int(private[1]) * KIB
