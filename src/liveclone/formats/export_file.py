"""The archive of an exported snapshot: a tar, compressed by zstd, with these files in this order and no others.

    index.json       every other file's name, size and digest, signed (model/export)
    manifest.json    the snapshot's, with nothing in it that lies elsewhere
    key              32 bytes, with which the digests in the manifest are keyed
    state            device state
    kernel, initrd   if its machines are started with them
    disk.qcow2       one layer, on nothing
    memory           the image, its holes as zeros

It is plain tar, for any other program to look into. What we read may come from anybody: a header is one block, of a file of
the name and size that the index has for that place, or it is refused. No link, no path and no extension is ever followed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable

from ..errors import Corrupt, Refused
from ..model import base
from ..model.export import KIND, VERSION, Index, Member, SignedIndex

INDEX = "index.json"
MANIFEST, KEY, STATE, KERNEL, INITRD, DISK, MEMORY = ORDER = (
    *("manifest.json", "key", "state", "kernel", "initrd", "disk.qcow2", "memory"),
)
OPTIONAL = (KERNEL, INITRD)
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
LONGEST_JSON = 16 * 1024 * 1024
_KEY_BYTES = 32


def render_header(name: str, size_bytes: int, mtime: int) -> bytes:
    """Return the block in front of a file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size_bytes, 0o600, mtime
    return info.tobuf(tarfile.GNU_FORMAT)


def parse_header(block: bytes) -> tuple[str, int]:
    """Return name and size of the plain file that follows.

    Raises:
        Corrupt: it is anything else (code "bad-export").
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise corrupt(f"a header that is none: {error}") from error
    if info.type != tarfile.REGTYPE or info.size < 0:
        raise corrupt(f"{info.name[:60]!r} is not a plain file")
    return info.name, info.size


def padding(size_bytes: int) -> int:
    """Return how many zeros follow a file of this size."""
    return -size_bytes % BLOCK


def parse_index(data: bytes, fits: Callable[[SignedIndex], bool]) -> tuple[SignedIndex, Index]:
    """Return the index, signed and read, when it is whole: the signature fits, and the members are those of the format.

    Raises:
        Corrupt: it is not (code "bad-export"). Refused: it is of a later version (code "newer-export").
    """
    signed = base.decode(data, SignedIndex, INDEX)
    if signed.index.get("kind") != KIND:
        raise corrupt(f"its kind is {str(signed.index.get('kind'))[:40]!r}")
    if signed.index.get("version") != VERSION:
        raise Refused(
            "the snapshot was exported by another version of liveclone",
            code="newer-export",
            tried="reading an exported snapshot",
            seen=f"version {str(signed.index.get('version'))[:20]} of the format; {VERSION} is known here",
            next_step="import it with the version that wrote it",
        )
    if not fits(signed):
        raise corrupt("its index is not what was signed")
    index = base.convert(signed.index, Index, INDEX)
    names = [member.name for member in index.members]
    wanted = [name for name in ORDER if name in names or name not in OPTIONAL]
    if names != wanted:
        raise corrupt(f"it holds {', '.join(names)[:200]}")
    for member in index.members:
        _check_size(member)
    return signed, index


def _check_size(member: Member) -> None:
    longest = {MANIFEST: LONGEST_JSON, KEY: _KEY_BYTES}.get(member.name, 1 << 62)
    least = _KEY_BYTES if member.name == KEY else 1
    if not least <= member.size_bytes <= longest:
        raise corrupt(f"{member.name} has {member.size_bytes} bytes")


def corrupt(seen: str) -> Corrupt:
    """Return the error for an archive that is not as `export` writes it."""
    return Corrupt(
        "the file is no snapshot that was exported, or damaged",
        code="bad-export",
        tried="reading an exported snapshot",
        seen=seen,
        source_state="not touched",
        next_step="get the file again from where it was exported",
    )
