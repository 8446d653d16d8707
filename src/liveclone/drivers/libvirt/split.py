"""Take a save image of libvirt's apart: pages into the memory image, everything else into the device state.

    save image      header (XML, cookie) | stream with all pages
    memory image    the pages of pc.ram, each at its own offset; sparse
    device state    header, its XML with the NICs that were unplugged for the capture | stream without those pages

So the device state is a save image too, one that libvirt itself can show (`virsh save-image-dumpxml`). What has been
read of the save image is freed at once: both never take the room of the memory together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats import compression, libvirt_save
from ...host import files, memory_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RAM = "pc.ram"
_PIECE = 4 * 1024 * 1024


def read_header(path: Path) -> libvirt_save.SaveHeader:
    """Return the header of a save image.

    Raises:
        Corrupt: it is none. StoreError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(libvirt_save.FIXED_BYTES)
            rest = file.read(libvirt_save.measure_header(head) - len(head))
    except OSError as error:
        raise files.explain(error, "reading a save image", path) from error
    return libvirt_save.parse_header(head + rest)


def split(
    save: Path,
    image: Path,
    state: Path,
    describe: Callable[[str], str],
    check: Callable[[bytes], None] = lambda stream: None,
) -> None:
    """Write `image` and `state` from `save`, which is used up; `describe` makes the state's XML of the save image's.

    Raises:
        Corrupt: the stream has something in it that we do not know. StoreError: no room. And what `check` raises of the
        stream without pages. Neither file is left.
    """
    from ...formats.migration_stream import Splitter  # numpy

    header = read_header(save)
    splitter = Splitter(RAM, start=header.stream_offset)
    try:
        with memory_image.create_image(image) as writer:
            for piece in _pieces(save, header):
                for run in splitter.feed(piece):
                    writer.write(run.offset, run.size_bytes, run.data)
            kept = splitter.finish()
            writer.resize(splitter.block_bytes)
        check(kept)
        changed = dataclasses.replace(
            header, xml=describe(header.xml), format=libvirt_save.SaveFormat.RAW, data_bytes=0
        )
        state.write_bytes(libvirt_save.render_header(changed) + kept)
    except BaseException as error:
        image.unlink(missing_ok=True)
        state.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise files.explain(
                error, "writing a part of the snapshot", Path(error.filename or image)
            ) from error
        raise


def _pieces(save: Path, header: libvirt_save.SaveHeader) -> Iterator[bytes]:
    if header.format.is_compressed:
        yield from compression.iter_unpacked(_read(save, header.stream_offset), header.format)
    else:
        yield from _read(save, header.stream_offset)


def _read(save: Path, offset: int) -> Iterator[bytes]:
    """Return a file's bytes from `offset` on, and free what has been returned."""
    fd = os.open(save, os.O_RDWR | os.O_CLOEXEC)
    try:
        while data := os.pread(fd, _PIECE, offset):
            yield data
            with contextlib.suppress(OSError):
                files.punch_hole(fd, offset, len(data))
            offset += len(data)
    finally:
        os.close(fd)
