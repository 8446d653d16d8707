"""Write small files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

_PAGE = 4096  # bytes; and the smallest block of a disk's file system that is usual


def find_bytes(path: str) -> bytes | None:
    """Return the content of `path`, or None where there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def find_text(path: str) -> str | None:
    """Return the text in `path`, or None where there is no such file."""
    data = find_bytes(path)
    return None if data is None else data.decode("utf-8", "surrogateescape")


def replace_file(path: str, text: str, mode: int = 0o644) -> None:
    """Give `path` a new content and mode; a symbolic link's target is replaced, not the link.

    A text that is not shorter than the old one and fits a page is written over it, with one call: to make a file, rename it
    and destroy another is a seventh of what a clone's kernel has to do until it is ready. Any other is renamed over it.
    A file that is a mount of its own cannot be renamed over (EBUSY) and is written in place.

    Not synced to the disk: the agent does that once, after its reply. Raises OSError with the old content left behind.
    """
    path = os.path.realpath(path)
    data = text.encode("utf-8", "surrogateescape")
    if _write_over(path, data, mode):
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.liveclone")
    remove(temporary)  # of an agent that died here
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write(fd, data)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        remove(temporary)
        if error.errno != errno.EBUSY:
            raise
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            _write(fd, data)
        finally:
            os.close(fd)


def _write_over(path: str, data: bytes, mode: int) -> bool:
    """Write over the content of a file of ours that has no other name; False, and nothing is done, where that is not so."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        whole = found.st_size <= len(data) <= _PAGE
        if not (
            whole and stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
        ):
            return False
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
        return os.pwrite(fd, data, 0) == len(data)
    finally:
        os.close(fd)


def replace_link(path: str, target: str) -> None:
    """Let the symbolic link `path` lead to `target`; a reader sees the old one or the new."""
    temporary = f"{path}.liveclone"
    remove(temporary)  # of an agent that died here
    os.symlink(target, temporary)
    os.rename(temporary, path)


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def sync(paths: Sequence[str]) -> None:
    """Make the content and the names of `paths` durable; one that is gone again is passed over."""
    folders = {os.path.dirname(path) for path in paths}
    for path in [*paths, *sorted(folders)]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_folder(path: str) -> None:
    """Remove a folder and the files in it; nothing happens when there is none."""
    try:
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except FileNotFoundError:
        pass


def remove(path: str) -> bool:
    """Remove a file; False when there was none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
