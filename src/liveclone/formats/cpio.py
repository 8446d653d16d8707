"""The archive that a Linux kernel unpacks as its first root file system ("newc" cpio).

    entry = header (110 bytes of ASCII hexadecimal) + name + NUL, padded to 4 | data, padded to 4
    archive = entries, then one named TRAILER!!!, padded to 512

Written here rather than by cpio(1): no process, no files as root, and the same input gives the same bytes
(times are zero, inode numbers count up), so an initrd's digest says whether anything in it changed. Directories
come before what they hold, because the kernel makes no parents. Source: kernel document
driver-api/early-userspace/buffer-format.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file, directory or device node; owner root, time zero.

    `mode` holds type and permission bits as in `stat`; `data` a file's bytes or a link's target; `device` the
    (major, minor) of a node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Return a regular file; `name` has no leading slash."""
    return Entry(name, stat.S_IFREG | permissions, data)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """Return a directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Return a character device node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def render_archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of `entries`, in their order, the same bytes for the same entries."""
    out = bytearray()
    for inode, entry in enumerate(entries, start=1):
        _append(out, entry, inode)
    _append(out, Entry("TRAILER!!!", 0), 0)
    _pad(out, 512)
    return bytes(out)


def _append(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields)
    out += name
    _pad(out, 4)
    out += entry.data
    _pad(out, 4)


def _pad(out: bytearray, boundary: int) -> None:
    out += bytes(-len(out) % boundary)
