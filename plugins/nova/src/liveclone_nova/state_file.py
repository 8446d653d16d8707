"""The bytes of a state image: written from a capture's parts, and taken apart again while they are fetched.

What is fetched goes to the disk compressed, and is unpacked when all of it has been compared. `seal` draws the picture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import zstandard

from liveclone.host import files
from liveclone.units import MIB
from liveclone_nova import seal
from liveclone_nova.seal import HEAD_BYTES, Description, Part

HEAD, DEVICE_STATE, MEMORY = "head", "state", "memory"
_PACKED = "memory.zst"
_LEVEL = 3  # zstd's own choice
_WINDOW = 128 * MIB  # what zstd accepts without --long
_ZEROS = bytes(MIB)


def describe(path: Path) -> Part:
    """Return size and digest of a file."""
    with path.open("rb") as file:
        return Part(size_bytes=path.stat().st_size, digest=hashlib.file_digest(file, seal.DIGEST).hexdigest())


def write(
    target: Path, device_state: Path, memory: Path, key: bytes, finish: Callable[[Part, Part], Description]
) -> Description:
    """Write a state image from a device state and a memory image.

    Args:
        finish: makes the description of both parts as they stand in the image.

    Raises:
        StoreError: no room.
    """
    try:
        with target.open("wb") as file:
            file.seek(HEAD_BYTES)
            parts = _copy(file, _read(device_state)), _copy(file, _pack(memory))
            description = finish(*parts)
            file.seek(0)
            file.write(seal.render_head(description, key))
    except OSError as error:
        raise files.explain(error, "writing the state of a live snapshot", target) from error
    return description


def fetch(
    pieces: Iterable[bytes], folder: Path, keys: Sequence[bytes], check: Callable[[Description], None]
) -> Description:
    """Take a state image apart while it comes, into HEAD, DEVICE_STATE and MEMORY in an empty folder.

    Args:
        pieces: of any size; no more of them are asked for than the head allows.
        check: is given the description, once it is believed, and before any more is read; raises to stop.

    Raises:
        Corrupt: it is not sealed by one of these keys, is not what its head says, or does not end where it should.
        StoreError: no room. What is in the folder then is not to be used.
    """
    source = _Source(pieces)
    head = source.take(HEAD_BYTES)
    description = seal.parse_head(head, keys)
    check(description)
    try:
        (folder / HEAD).write_bytes(head)
        for name, part in ((DEVICE_STATE, description.device_state), (_PACKED, description.memory)):
            _store(folder / name, source, part)
        if source.take(1, all_of_it=False):
            raise seal.corrupt("something follows its end", "damaged-state")
        _unpack(folder / _PACKED, folder / MEMORY, description.ram_bytes)
        (folder / _PACKED).unlink()
        for name in (HEAD, DEVICE_STATE, MEMORY):
            files.sync_file(folder / name)
    except OSError as error:
        raise files.explain(error, "storing the state of a live snapshot", folder) from error
    return description


class _Source:
    """Pieces of any size, asked for in sizes of ours."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = b""

    def take(self, size_bytes: int, *, all_of_it: bool = True) -> bytes:
        """Return the next bytes; fewer at the end, which is an error unless that is expected."""
        found = [self._left]
        missing = size_bytes - len(self._left)
        while missing > 0 and (piece := next(self._pieces, None)) is not None:
            found.append(piece)
            missing -= len(piece)
        if missing > 0 and all_of_it:
            raise seal.corrupt("it ends early", "damaged-state")
        data = b"".join(found)
        self._left = data[size_bytes:]
        return data[:size_bytes]


def _store(path: Path, source: _Source, part: Part) -> None:
    digest, left = hashlib.new(seal.DIGEST), part.size_bytes
    with path.open("xb") as file:
        while left:
            data = source.take(min(MIB, left))
            digest.update(data)
            file.write(data)
            left -= len(data)
    if digest.hexdigest() != part.digest:
        raise seal.corrupt(f"its {path.stem} is not what was captured", "damaged-state")


def _copy(file: IO[bytes], pieces: Iterable[bytes]) -> Part:
    digest, size_bytes = hashlib.new(seal.DIGEST), 0
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
        size_bytes += len(piece)
    return Part(size_bytes=size_bytes, digest=digest.hexdigest())


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(MIB):
            yield data


def _pack(memory: Path) -> Iterator[bytes]:
    """Yield a memory image compressed, its holes as zeros."""
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False).compressobj()
    done = 0
    with memory.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        for offset, data in files.read_data(file.fileno(), size_bytes):
            yield from (packer.compress(zeros) for zeros in _zeros(offset - done))
            yield packer.compress(data)
            done = offset + len(data)
        yield from (packer.compress(zeros) for zeros in _zeros(size_bytes - done))
    yield packer.flush()


def _zeros(size_bytes: int) -> Iterator[bytes]:
    for at in range(0, size_bytes, len(_ZEROS)):
        yield _ZEROS[: size_bytes - at]


def _unpack(packed: Path, target: Path, size_bytes: int) -> None:
    """Write what was compressed to a new file of this size, with holes where zeros are."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
        offset = 0
        with packed.open("rb") as file, unpacker.stream_reader(file) as reader:
            while data := reader.read(MIB):
                if offset + len(data) > size_bytes:
                    break
                files.write_nonzero(fd, data, offset)
                offset += len(data)
        if offset != size_bytes or data:
            raise seal.corrupt("its memory has another size than it says", "damaged-state")
    except zstandard.ZstdError as error:
        raise seal.corrupt(f"its memory cannot be unpacked: {error}", "damaged-state") from error
    finally:
        os.close(fd)
