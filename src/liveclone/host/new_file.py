"""A large file that gets its name when it is complete: whoever dies before leaves nothing.

Where the file system has files without a name (O_TMPFILE: ext4, XFS, btrfs, tmpfs), the kernel takes it away with our
process. Elsewhere (NFS) it has a hidden name beside the one it will get, and a process that is killed leaves it there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import NotFound, Refused
from . import files

_UNKNOWN = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)  # open(2): a file system, or a kernel, without it


@contextlib.contextmanager
def open_new(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write; at the block's end it is durable, and is called `path`.

    Raises:
        Refused: there is a file of that name, before or at the end (code "file-exists"). It stays as it is.
        StoreError: it cannot be written. No file is left in either case, nor when the block raises.
    """
    check_free(path)
    try:
        fd, hidden = _open(path)
        with contextlib.ExitStack() as undo:
            if hidden is not None:
                undo.callback(hidden.unlink, missing_ok=True)
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _name(file.fileno(), hidden, path)
        files.sync_folder(path.parent)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise files.explain(error, "writing a file", path) from error


def check_free(path: Path) -> None:
    """Raise Refused if there is anything of that name (code "file-exists"), NotFound if there is no folder for it."""
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir():
        raise NotFound(
            f"there is no folder {path.parent}",
            code="no-such-folder",
            tried="writing a file",
            on=str(path),
            source_state="not touched",
            next_step=f"mkdir -p {path.parent}",
        )


def _open(path: Path) -> tuple[int, Path | None]:
    try:
        return os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), None
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    return os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), hidden


def _name(fd: int, hidden: Path | None, path: Path) -> None:
    """Give an open file its name: by a link, which replaces nothing, unlike a rename."""
    if hidden is not None:
        os.link(hidden, path)
        return
    # As open(2) has it for O_TMPFILE; with a folder's descriptor, since without one Python's link follows nothing.
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _exists(path: Path) -> Refused:
    return Refused(
        f"there is a {path} already",
        code="file-exists",
        tried="writing a file",
        on=str(path),
        source_state="not touched",
        next_step="choose another name, or remove it",
    )
