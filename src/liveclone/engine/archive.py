"""Folders as tar streams, through a pipe: packed for a guest, and unpacked from one that is not trusted.

What a guest sends may name any path. Every part of a name is therefore opened from the folder before it, never
following a symbolic link, so nothing can be written outside of the target, whatever is in the stream or
already in the folder. Only files, folders and links come out; owners, setuid bits and devices do not.

Both functions block and belong in a thread; they own and close the descriptor that they are given. Closing the other
end of the pipe ends them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tarfile
from pathlib import Path, PurePosixPath

from ..errors import Corrupt, LivecloneError, StoreError
from ..host.files import explain

_CHUNK = 256 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(source: Path, name: str, fd: int) -> None:
    """Write `source`, a file or a folder with all in it, to `fd` under the name `name` ("." for its contents).

    Everything belongs to root in the archive. A reader that goes away is no error here; it has its own.

    Raises:
        StoreError: it cannot be read. The archive has no end then, so its reader fails too.
    """
    try:
        with (
            os.fdopen(fd, "wb") as pipe,
            # GNU's form: busybox reads its long names, and not those of pax.
            tarfile.open(fileobj=pipe, mode="w|", bufsize=_CHUNK, format=tarfile.GNU_FORMAT) as archive,
        ):
            archive.add(source, name, filter=_as_root)
    except BrokenPipeError:
        return
    except OSError as error:
        raise explain(error, "reading what is to be copied", Path(error.filename or source)) from error


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(fd: int, folder: Path, old: str = "", new: str = "") -> tuple[str, ...]:
    """Unpack the archive from `fd` into `folder`; what is there and has the same name is replaced.

    Args:
        old, new: the archive's topmost name, and what it is called here.

    Returns:
        The names that were left out, since they are neither files nor folders nor links.

    Raises:
        StoreError: it cannot be written; what was unpacked before stays.
        Corrupt: it is no archive, has no end, or leads out of the folder.
    """
    root = -1
    try:
        with os.fdopen(fd, "rb") as pipe:
            root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with tarfile.open(fileobj=pipe, mode="r|", bufsize=_CHUNK) as archive:
                left_out = _Unpacking(root, old, new).all_of(archive)
            while pipe.read(_CHUNK):  # padding behind the end; a writer must not meet a closed pipe
                pass
            return left_out
    except (tarfile.TarError, EOFError) as error:
        raise _broken(folder, str(error) or type(error).__name__) from error
    except OSError as error:
        raise _explain(error, folder) from error
    finally:
        if root >= 0:
            os.close(root)


class _Unpacking:
    """One archive being unpacked under the folder `root`."""

    def __init__(self, root: int, old: str, new: str) -> None:
        self.root, self.old, self.new = root, old, new

    def all_of(self, archive: tarfile.TarFile) -> tuple[str, ...]:
        left_out = []
        modes: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
        for member in archive:
            parts = self.parts(member.name)
            if member.isdir():
                os.close(self.open_folder(parts))
                modes.append((parts, member))
            elif not parts or not (member.isreg() or member.islnk() or member.issym()):
                left_out.append(member.name)
            else:
                self.put(archive, member, parts)
        for parts, member in reversed(modes):  # last, since a folder may be read-only
            fd = self.open_folder(parts)
            _finish(fd, member)
            os.close(fd)
        return tuple(left_out)

    def parts(self, name: str) -> tuple[str, ...]:
        path = PurePosixPath(name)
        parts = tuple(part for part in path.parts if part != ".")
        if path.is_absolute() or ".." in parts:
            raise _broken(Path(name), "it leads out of the folder that was asked for")
        if self.old and parts and parts[0] == self.old:
            parts = (self.new, *parts[1:])
        return parts

    def open_folder(self, parts: tuple[str, ...]) -> int:
        """Return a descriptor of a folder under the root, made where it is missing."""
        fd = os.dup(self.root)
        for part in parts:
            try:
                try:
                    inner = os.open(part, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(part, 0o777, dir_fd=fd)
                    inner = os.open(part, _FOLDER, dir_fd=fd)
            except OSError as error:
                error.filename = "/".join(parts)
                raise
            finally:
                os.close(fd)
            fd = inner
        return fd

    def put(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        folder, name = self.open_folder(parts[:-1]), parts[-1]
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            if member.issym():
                os.symlink(member.linkname, name, dir_fd=folder)
            elif member.islnk():
                self.link(self.parts(member.linkname), folder, name)
            else:
                fd = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
                with os.fdopen(fd, "wb") as target:
                    content = archive.extractfile(member)
                    assert content is not None, "a regular file has content"
                    shutil.copyfileobj(content, target, _CHUNK)
                    target.flush()
                    _finish(fd, member)
        except OSError as error:
            error.filename = "/".join(parts)
            raise
        finally:
            os.close(folder)

    def link(self, parts: tuple[str, ...], folder: int, name: str) -> None:
        there = self.open_folder(parts[:-1])
        try:
            os.link(parts[-1], name, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(there)


def _finish(fd: int, member: tarfile.TarInfo) -> None:
    os.fchmod(fd, stat.S_IMODE(member.mode) & 0o777)
    os.utime(fd, (member.mtime, member.mtime))


def _explain(error: OSError, folder: Path) -> LivecloneError:
    path = folder / str(error.filename or "")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        return StoreError(
            f"{path} is in the way",
            code="in-the-way",
            tried="unpacking what the guest sent",
            on=str(path),
            seen=error.strerror or "",
            next_step="copy to another folder, or remove it",
        )
    return explain(error, "unpacking what the guest sent", path)


def _broken(on: Path, seen: str) -> Corrupt:
    return Corrupt(
        "what the guest sent cannot be unpacked",
        code="bad-archive",
        tried="reading a tar stream",
        on=str(on),
        seen=seen,
        next_step="try again; to look at it yourself, copy to - and read it with tar",
    )
