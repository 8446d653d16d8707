"""Files that are there whole or not at all, and large sparse ones copied as they are."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import StoreError
from ..units import KIB, MIB, PAGE

_CHUNK = 4 * MIB
_SHORT_HOLE = 64 * KIB
_PIECE = 256 * KIB  # larger ones are new memory each time, whose pages the kernel has to bring


def write_atomic(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Write `data` to `path` so that a reader, or a crash, meets the old file or the new, never half.

    With `durable` it has reached the disk when this returns: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StoreError: it cannot be written; the old file, if any, is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explain(error, "writing a file", path) from error


def sync_file(path: Path) -> None:
    """Make a file's contents durable, whoever wrote them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a new folder, owner only.

    Raises:
        StoreError: it cannot be made, or is there already.
    """
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise explain(error, "making a folder", folder) from error


def remove_tree(folder: Path) -> None:
    """Remove a folder with all in it; one that is gone is no error."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(error, "removing a folder", folder) from error


def hard_link(source: Path, target: Path) -> None:
    """Give the file at `source` a second name. Both must be on one file system."""
    try:
        os.link(source, target)
    except OSError as error:
        raise explain(error, "linking a file", target) from error


def data_ranges(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the parts of an open file that are not holes."""
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start
        offset = end


def read_data(fd: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of an open file's data, in small pieces of whole pages, ascending, without its holes.

    Short holes are read, as zeros. A file that becomes shorter meanwhile ends early.
    """
    for begin, end in plan_reads(data_ranges(fd, size_bytes), size_bytes):
        while begin < end and (data := os.pread(fd, min(_PIECE, end - begin), begin)):
            yield begin, data
            begin += len(data)


def plan_reads(ranges: Iterable[tuple[int, int]], size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of what to read for ranges of (offset, length): whole pages, with holes not worth a call."""
    begin = end = 0
    for start, length in ranges:
        if start > end + _SHORT_HOLE:
            yield begin, end
            begin = start - start % PAGE  # a file system's blocks may be smaller than a page
        end = min(start + length + -(start + length) % PAGE, size_bytes)
    yield begin, end


def punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    """Free a part of an open file; it reads as zeros then.

    Raises:
        OSError: the file system cannot do that.
    """
    import ctypes  # Python has no name for it; most commands do without

    mode = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (linux/falloc.h)
    if ctypes.CDLL(None, use_errno=True).fallocate(
        fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def copy_sparse(
    source: Path, target: Path, progress: Callable[[float], None] = lambda fraction: None, mode: int = 0o600
) -> None:
    """Copy a file with its holes, and with pages of zeros made holes; durable when this returns.

    Raises:
        StoreError: it cannot be read or written; no target is left.
    """
    try:
        with source.open("rb", buffering=0) as reader:
            size = os.fstat(reader.fileno()).st_size
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                os.ftruncate(fd, size)
                for start, length in data_ranges(reader.fileno(), size):
                    for offset in range(start, start + length, _CHUNK):
                        data = os.pread(reader.fileno(), min(_CHUNK, start + length - offset), offset)
                        write_nonzero(fd, data, offset)
                        progress((offset + len(data)) / size)
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(target.parent)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise explain(error, "copying a file", target) from error


_STEP = 64 * 1024
_ZEROS = bytes(_STEP)


def write_nonzero(fd: int, data: bytes, offset: int) -> None:
    """Write to an open file at `offset`, leaving out pieces of zeros; a file that was empty has holes there."""
    view = memoryview(data)
    begin: int | None = None
    for at in range(0, len(view), _STEP):
        piece = view[at : at + _STEP]
        if piece == _ZEROS[: len(piece)]:
            if begin is not None:
                _write_all(fd, view[begin:at], offset + begin)
                begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        _write_all(fd, view[begin:], offset + begin)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def explain(error: OSError, tried: str, path: Path) -> StoreError:
    """Return the StoreError for an OSError, with what helps against the usual ones."""
    helps = {
        errno.ENOSPC: ("disk-full", f"make room: df -h {path.parent}"),
        errno.EDQUOT: ("disk-full", "your quota is used up"),
        errno.EACCES: ("no-permission", f"see who owns {path.parent}"),
        errno.EPERM: ("no-permission", f"see who owns {path.parent}"),
        errno.EROFS: ("read-only", f"{path.parent} is on a read-only file system"),
        errno.EXDEV: ("two-file-systems", "keep LIVECLONE_HOME on one file system"),
    }
    code, advice = helps.get(error.errno or 0, ("store", "liveclone doctor"))
    return StoreError(
        f"{tried} failed: {error.strerror}",
        code=code,
        tried=tried,
        on=str(path),
        seen=str(error),
        next_step=advice,
    )
