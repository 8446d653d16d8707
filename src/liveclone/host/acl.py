"""POSIX access control lists: let one more user at a file, and nobody else.

Mode bits know one user, one group, everybody. What a hypervisor's own user may read is then either that user's, who may
change it, or open to a group that others are in. A list names the user (acl(5)); as bytes, in the extended attribute:

    version 2 (u32) | tag (u16) permissions (u16) id (u32) | ...       ordered by tag, then id; little-endian

`mask` bounds all but owner and others, and is what stat and chmod then take for the group's bits.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

READ, WRITE, PASS = 4, 2, 1

_ATTRIBUTE = "system.posix_acl_access"
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_VERSION = 2
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF

_List = dict[tuple[int, int], int]  # permissions by tag and id


def allow(path: Path, user: int, permissions: int) -> None:
    """Let `user` (a number) do this to a file, besides what it may already; nothing is written if it may.

    Raises:
        OSError: the file is not ours, or its file system keeps no lists (ENOTSUP).
    """
    found = _read(path)
    granted = found.get((_USER, user), 0)
    mask = found.get((_MASK, _NOBODY), found[_GROUP, _NOBODY])
    if granted & mask & permissions == permissions:
        return
    # A mask that chmod has narrowed bars what the list still has: none of that comes back with ours.
    narrowed = {
        key: value & mask if key[0] in (_USER, _GROUP, _NAMED_GROUP) else value
        for key, value in found.items()
    }
    narrowed[_USER, user] = narrowed.get((_USER, user), 0) | permissions
    narrowed[_MASK, _NOBODY] = mask | permissions
    os.setxattr(path, _ATTRIBUTE, _render(narrowed))


def may_pass(folder: Path, user: int, groups: frozenset[int]) -> bool:
    """Tell whether a user in these groups (numbers) may go through a folder."""
    seen, found = folder.stat(), _read(folder)
    mask = found.get((_MASK, _NOBODY), stat.S_IRWXO)
    if user == seen.st_uid:
        return bool(found[_OWNER, _NOBODY] & PASS)
    if (_USER, user) in found:
        return bool(found[_USER, user] & mask & PASS)
    theirs = [found[_GROUP, _NOBODY]] if seen.st_gid in groups else []
    theirs += [value for (tag, group), value in found.items() if tag == _NAMED_GROUP and group in groups]
    if theirs:
        return any(value & mask & PASS for value in theirs)
    return bool(found[_OTHERS, _NOBODY] & PASS)


def _read(path: Path) -> _List:
    """Return a file's list; that of one without is what its mode says."""
    try:
        data = os.getxattr(path, _ATTRIBUTE)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        mode = path.stat().st_mode
        return {
            (_OWNER, _NOBODY): mode >> 6 & 7,
            (_GROUP, _NOBODY): mode >> 3 & 7,
            (_OTHERS, _NOBODY): mode & 7,
        }
    entries = _ENTRY.iter_unpack(data[_HEADER.size :])
    return {(tag, identity): permissions for tag, permissions, identity in entries}


def _render(entries: _List) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join(
        _ENTRY.pack(tag, permissions, identity) for (tag, identity), permissions in sorted(entries.items())
    )
