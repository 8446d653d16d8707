"""Write small files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence


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
    """Give `path` a new content and mode, by renaming; a symbolic link's target is replaced, not the link.

    Not synced to the disk: the agent does that once, after its reply. A file that is a mount of its own cannot be
    renamed over (EBUSY) and is written in place. Raises OSError with the old content left behind.
    """
    path = os.path.realpath(path)
    data = text.encode("utf-8", "surrogateescape")
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
