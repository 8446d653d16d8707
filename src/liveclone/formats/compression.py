"""What a compressed save image holds, in pieces of bounded size.

libvirt pipes the stream through a program of the format's name; here it is undone in the process. However much a small
file unpacks to, no more than `PIECE` and the format's own window are in memory.

NOT HANDLED: lzop, for which Python has nothing; a zstd file that ends early. Tripwires: Unsupported with what to do; and
what is unpacked is a migration stream, whose end the splitter knows.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, cast

import zstandard

from ..errors import Corrupt, Unsupported
from ..units import MIB
from .libvirt_save import SaveFormat

PIECE = MIB
_ZSTD_WINDOW = 128 * MIB  # what the program accepts without --long


class _Pieces(io.RawIOBase):
    """Pieces of any size as something to read from; counts what it gave."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = memoryview(b"")
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        size = min(len(target), len(self._left))
        target[:size] = self._left[:size]
        self._left = self._left[size:]
        self.given += size
        return size


def iter_unpacked(pieces: Iterable[bytes], form: SaveFormat) -> Iterator[bytes]:
    """Yield the migration stream that follows a save image's header, in pieces of at most PIECE bytes.

    `pieces` are what lies in the file, of any size, and are asked for as they are needed; without compression they come
    back as they are.

    Raises:
        Unsupported: lzop (code "no-lzop").
        Corrupt: damaged or cut off (code "bad-compression"); the offset counts compressed bytes, of which some may have
            been read ahead.
    """
    if not form.is_compressed:
        yield from pieces
        return
    source = _Pieces(pieces)
    reader = _open(form, io.BufferedReader(source, 64 * 1024))
    try:
        while piece := reader.read(PIECE):
            yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise Corrupt(
            f"the save image cannot be unpacked near offset {source.given} of its stream: {error}",
            code="bad-compression",
            tried=f"unpacking {form.name.lower()}",
            on=f"offset {source.given}",
            seen=str(error),
            next_step=f"{form.name.lower()} -dc",
        ) from error


def _open(form: SaveFormat, source: io.BufferedReader) -> IO[bytes]:
    if form is SaveFormat.GZIP:
        return cast(IO[bytes], gzip.GzipFile(fileobj=source))
    if form is SaveFormat.BZIP2:
        return bz2.BZ2File(source)
    if form is SaveFormat.XZ:
        return lzma.LZMAFile(source, format=lzma.FORMAT_XZ)
    if form is SaveFormat.ZSTD:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return cast(IO[bytes], unpacker.stream_reader(source, read_across_frames=True))
    raise Unsupported(
        "save images compressed by lzop cannot be read",
        code="no-lzop",
        tried="unpacking a save image",
        seen=form.name.lower(),
        next_step="set save_image_format and snapshot_image_format in libvirt's qemu.conf to raw or zstd",
    )
