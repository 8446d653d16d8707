"""Copy files between host and guest: a tar stream through a command in the guest (engine/execute).

    into the guest   pack (thread) ── pipe ── exec: tar -x -C FOLDER
    out of it        exec: tar -c -C FOLDER NAME ── pipe ── unpack (thread)

Names are as docker's: into a folder that exists it goes under its own name, otherwise it gets the target's name;
SOURCE/. means what is in the folder; a relative path of the guest counts from /. Needs `tar` and `sh` in the guest.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import time
from pathlib import Path

from ..errors import GuestError, LivecloneError, NotFound, Refused
from ..model.machine import Machine
from ..units import render_size
from . import archive, execute
from .context import Context
from .execute import Command, Read, Streams, Write

_REPORT_S = 2.0

# Answers what there is at a path, links followed: dir, file, parent (nothing, but its folder), nothing.
_LOOK = """\
if [ -d "$1" ]; then echo dir; elif [ -e "$1" ] || [ -L "$1" ]; then echo file
elif [ -d "$2" ]; then echo parent; else echo nothing; fi
"""


async def copy_in(ctx: Context, machine: Machine, source: str, target: str) -> None:
    """Copy a file or folder of the host to `target` in the guest; it belongs to root there.

    Raises:
        NotFound: there is no such source, or no folder for it. Refused: a folder would replace a file.
        GuestError, TimedOut, StoreError: it broke off; part of it may be there.
    """
    local, path = Path(source), _absolute(target)
    _check_source(local)
    found = await _look(ctx, machine, path)
    into = found == "dir"
    if not into and (target.endswith("/") or found == "nothing"):
        raise _no_folder(machine, path if target.endswith("/") else posixpath.dirname(path))
    if found == "file" and local.is_dir():
        raise _file_there(machine.name, path)
    if into:
        folder, name = path, "." if _means_contents(source) else local.name
    else:
        folder, name = posixpath.dirname(path), posixpath.basename(path)
    read_fd, write_fd = os.pipe()
    packing = asyncio.create_task(asyncio.to_thread(archive.pack, local, name, write_fd))
    reader, transport = await _open_reader(read_fd)
    try:
        await _put(ctx, machine, folder, _counted(ctx, f"copying to {machine.name}", reader.read))
    except LivecloneError:
        transport.close()
        await packing  # if it failed, that is the cause
        raise
    finally:
        transport.close()
        await asyncio.gather(packing, return_exceptions=True)
    await packing


async def copy_out(ctx: Context, machine: Machine, source: str, target: str) -> tuple[str, ...]:
    """Copy a file or folder of the guest to `target`; returns the names that were left out (devices and sockets).

    Raises:
        NotFound: there is no such source, or no folder for it. Refused: a folder would replace a file.
        GuestError, TimedOut, StoreError, Corrupt: it broke off; part of it may be there.
    """
    path, local = _absolute(source), Path(target)
    found = await _look(ctx, machine, path)
    if found not in ("dir", "file"):
        raise _no_source(machine, path)
    contents = _means_contents(source) and found == "dir"
    into = local.is_dir()
    folder = local if into else local.parent
    if not folder.is_dir() or (target.endswith("/") and not into):
        raise NotFound(
            f"there is no folder {folder if not folder.is_dir() else local}",
            code="no-such-folder",
            tried=f"copying out of {machine.name}",
            on=str(folder),
            next_step="make it first",
        )
    if found == "dir" and not into and local.exists():
        raise _file_there("the host", target)
    if contents and not into:
        local.mkdir()
        folder = local
    parent, base = _split(path, contents)
    new = base if into or contents else local.name
    read_fd, write_fd = os.pipe()
    unpacking = asyncio.create_task(asyncio.to_thread(archive.unpack, read_fd, folder, base, new))
    writer = await _open_writer(write_fd)

    async def write(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    try:
        await _get(ctx, machine, parent, base, _counted_write(ctx, f"copying from {machine.name}", write))
    except OSError:  # the pipe: whoever unpacks has given up, and says why
        await unpacking
        raise
    except BaseException:
        writer.transport.abort()
        await asyncio.gather(unpacking, return_exceptions=True)
        raise
    finally:
        writer.close()
    return await unpacking


async def put_archive(ctx: Context, machine: Machine, folder: str, read: Read) -> None:
    """Unpack a tar stream of the caller's in a folder of the guest."""
    path = _absolute(folder)
    if await _look(ctx, machine, path) != "dir":
        raise _no_folder(machine, path)
    await _put(ctx, machine, path, read)


async def get_archive(ctx: Context, machine: Machine, source: str, write: Write) -> None:
    """Write a file or folder of the guest as a tar stream."""
    path = _absolute(source)
    if await _look(ctx, machine, path) not in ("dir", "file"):
        raise _no_source(machine, path)
    await _get(ctx, machine, *_split(path, _means_contents(source)), write)


async def _put(ctx: Context, machine: Machine, folder: str, read: Read) -> None:
    command = Command(["tar", "-x", "-o", "-f", "-", "-C", folder])
    errors = bytearray()
    code = await execute.execute(ctx, machine, command, Streams(read=read, stderr=_collect(errors)))
    if code:
        raise _failed(machine, "unpacking in the guest", folder, code, errors)


async def _get(ctx: Context, machine: Machine, parent: str, name: str, write: Write) -> None:
    command = Command(["tar", "-c", "-f", "-", "-C", parent, "--", name])
    errors = bytearray()
    code = await execute.execute(ctx, machine, command, Streams(stdout=write, stderr=_collect(errors)))
    # 1: a file changed while it was read, which in a running machine is no failure (tar(1), RETURN VALUE).
    if code > 1 or (code and b"changed as we read" not in errors):
        raise _failed(machine, "packing in the guest", posixpath.join(parent, name), code, errors)


async def _look(ctx: Context, machine: Machine, path: str) -> str:
    code, out, err = await execute.ask(ctx, machine, ["sh", "-c", _LOOK, "sh", path, posixpath.dirname(path)])
    if code:
        raise _failed(machine, "looking at a path", path, code, bytearray(err, "utf-8", "replace"))
    return out.strip()


def _collect(into: bytearray) -> Write:
    async def write(data: bytes) -> None:
        into.extend(data)
        del into[:-2000]

    return write


class _Meter:
    """Says how far it is, now and then."""

    def __init__(self, ctx: Context, what: str) -> None:
        self.ctx, self.what, self.bytes = ctx, what, 0
        self.next = time.monotonic()

    def add(self, count: int) -> None:
        self.bytes += count
        if time.monotonic() >= self.next:
            self.ctx.progress(f"{self.what}: {render_size(self.bytes)}", None)
            self.next = time.monotonic() + _REPORT_S


def _counted(ctx: Context, what: str, read: Read) -> Read:
    meter = _Meter(ctx, what)

    async def counted(size: int) -> bytes:
        data = await read(size)
        meter.add(len(data))
        return data

    return counted


def _counted_write(ctx: Context, what: str, write: Write) -> Write:
    meter = _Meter(ctx, what)

    async def counted(data: bytes) -> None:
        await write(data)
        meter.add(len(data))

    return counted


async def _open_reader(fd: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader(limit=execute.INPUT_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader, transport


async def _open_writer(fd: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(fd, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


def _absolute(path: str) -> str:
    """Return a guest's path as counted from its root, without the dots and slashes that only say how it is meant."""
    if "\0" in path:
        raise Refused("a path cannot hold a NUL", code="bad-path", tried="reading a path")
    return posixpath.normpath("/" + path.lstrip("/"))


def _means_contents(path: str) -> bool:
    return path in (".", "..", "/") or path.endswith(("/.", "/.."))


def _split(path: str, contents: bool) -> tuple[str, str]:
    """Return the folder that tar changes to, and the name that it packs there."""
    return (path, ".") if contents or path == "/" else (posixpath.dirname(path), posixpath.basename(path))


def _check_source(source: Path) -> None:
    if not source.exists() and not source.is_symlink():
        raise NotFound(
            f"{source} is not there",
            code="no-such-file",
            tried="copying into a guest",
            on=str(source),
            next_step="check the path",
        )


def _no_source(machine: Machine, path: str) -> NotFound:
    return NotFound(
        f"{machine.name} has no {path}",
        code="no-such-file",
        tried=f"copying out of {machine.name}",
        on=path,
        next_step=f"liveclone exec {machine.name} -- ls -l {posixpath.dirname(path)}",
    )


def _no_folder(machine: Machine, path: str) -> NotFound:
    return NotFound(
        f"{machine.name} has no folder {path}",
        code="no-such-folder",
        tried=f"copying into {machine.name}",
        on=path,
        next_step=f"liveclone exec {machine.name} -- mkdir -p {path}",
    )


def _file_there(where: str, path: str) -> Refused:
    return Refused(
        f"{path} is a file, and cannot be replaced by a folder",
        code="file-there",
        tried="copying a folder",
        on=f"{where}: {path}",
        next_step="choose another name",
    )


def _failed(machine: Machine, tried: str, path: str, code: int, words: bytearray) -> GuestError:
    missing = code == 127
    return GuestError(
        f"{tried} failed" + (": the guest has no such program" if missing else ""),
        code="no-program" if missing else "copy-failed",
        tried=tried,
        on=f"{machine.name}:{path}",
        seen=words.decode(errors="replace").strip()[-300:] or f"exit code {code}",
        next_step="install tar in the guest" if missing else "see whether there is room and permission",
    )
