"""Another process's memory: where a file is mapped in it, and filling its page tables from outside."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

from ..errors import HypervisorError, NotFound
from ..units import PAGE

_BATCH = 1024  # IOV_MAX: pages touched by one process_vm_readv(2)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


def find_mapping(pid: int, path: Path) -> tuple[int, int]:
    """Return the first and the last-plus-one address where `path` is mapped in process `pid`.

    The file may have been removed since; the kernel then adds a word to its name.

    Raises:
        NotFound: the process is gone, or does not map the file.
    """
    names = (str(path), f"{path} (deleted)")
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(
            f"process {pid} cannot be looked at",
            code="not-running",
            tried="reading its memory map",
            on=str(pid),
            seen=str(error),
        ) from error
    found = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in names:
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16)))
    if not found:
        raise NotFound(
            f"process {pid} does not map {path}",
            code="not-mapped",
            tried="looking for guest RAM",
            on=str(pid),
            seen=f"{len(lines)} other mappings",
        )
    return min(start for start, _ in found), max(end for _, end in found)


def populate(pid: int, start: int, end: int) -> None:
    """Make every page of [start, end) in process `pid` present in its page tables, by reading a byte of each.

    The process goes on meanwhile. Costs about 0.2 µs a page; holes of a tmpfs file become zero pages.

    Raises:
        HypervisorError: the kernel refused it (no right to look into the process, or it is gone).
    """
    local = (ctypes.c_char * _BATCH)()
    to = _IoVec(ctypes.addressof(local), _BATCH)
    vectors = (_IoVec * _BATCH)()
    for vector in vectors:
        vector.length = 1
    for first in range(start, end, _BATCH * PAGE):
        count = min(_BATCH, (end - first) // PAGE)
        for index in range(count):
            vectors[index].base = first + index * PAGE
        done = _libc.process_vm_readv(
            ctypes.c_int(pid),
            ctypes.byref(to),
            ctypes.c_ulong(1),
            vectors,
            ctypes.c_ulong(count),
            ctypes.c_ulong(0),
        )
        if done != count:
            number = ctypes.get_errno()
            raise HypervisorError(
                f"memory of process {pid} cannot be read",
                code="no-access",
                tried="process_vm_readv",
                on=f"{pid} at {first:#x}",
                seen=errno.errorcode.get(number, str(number)),
                next_step="run as the user who started the machine",
            )
