"""Take a disk that boots by itself into the library.

    FILE (qcow2) ── looked at ── copied with its holes ──┐
    FILE (raw)   ── looked at ── converted ──────────────┴─> images/NAME/{manifest.json,disk.qcow2}

Such a machine is started by the BIOS from its own boot loader, with its own kernel. Whether its guest has an agent, and
VMGENID, shows when it runs. The file is read, never changed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .. import ids
from ..errors import NotFound, Refused
from ..formats import qcow2
from ..host import command, files
from ..model.base import now
from ..model.image import Image
from ..model.machine import Boot
from . import library
from .library import ImageLibrary

Progress = Callable[[str, float | None], None]

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file, where the file system can (btrfs, XFS)
_DEADLINE_S = 2 * 3600.0

# What else people have, by its first bytes or those at an offset.
_FOREIGN = (
    (0, b"KDMV", "a VMware disk (vmdk)"),
    (0, b"# Disk Des", "a VMware disk's descriptor (vmdk)"),
    (0, b"vhdxfile", "a Hyper-V disk (vhdx)"),
    (0, b"conectix", "a Virtual PC disk (vpc)"),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk (vdi)"),
    (0, b"\x1f\x8b", "packed (gzip)"),
    (0, b"\xfd7zXZ", "packed (xz)"),
    (0, b"\x28\xb5\x2f\xfd", "packed (zstd)"),
    (0, b"PK\x03\x04", "packed (zip)"),
    (0x8001, b"CD001", "a CD"),
)


def silent(phase: str, fraction: float | None = None) -> None:
    """Tell nobody."""


async def import_disk(
    file: Path, name: str, folder: Path, progress: Progress = silent, *, replace: bool = False
) -> Image:
    """Copy a disk into the library in `folder` and return its image.

    Args:
        file: qcow2 without a backing file, or raw; its machine is off.
        replace: an image of this name may go; the caller knows that nothing uses it.

    Raises:
        NotFound: there is no such file.
        Refused: it is no disk that a machine can boot from; the message has the remedy.
        Corrupt: its header is damaged.
        Conflict: the name is taken.
        StoreError: it cannot be read, or there is no room. Nothing was added in any of these cases.
    """
    ids.check_name(name, "name of an image")
    file = file.absolute()  # QEMU would take the head of "a:b" for a protocol
    images = ImageLibrary(folder)
    begin = time.monotonic()
    progress("looking at the disk", None)
    is_qcow2, size_bytes = inspect(file)
    async with images.hold(name, f"importing image {name}"):
        if images.find(name) is not None and not replace:
            raise library.taken(name)
        parts = images.new_folder(name)
        try:
            if not has_boot_code(await _read_start(file, "qcow2" if is_qcow2 else "raw", parts)):
                raise _refuse(
                    file,
                    "it does not boot by itself: its first sector has no boot code for a BIOS",
                    "import a disk made for BIOS machines, or build an image: liveclone image build",
                )
            disk = parts / library.DISK
            if is_qcow2:
                await _copy(file, disk, progress)
            else:
                progress("converting the disk", None)
                await _convert(file, disk)
            disk.chmod(0o444)
            image = Image(
                name=name,
                created_at=now(),
                disk=str(images.folder(name) / library.DISK),
                disk_bytes=size_bytes,
                boot=Boot(),
                took_s=round(time.monotonic() - begin, 1),
            )
            images.add(image, parts, replace=replace)
        finally:
            files.remove_tree(parts)
    progress("done", 1.0)
    return image


def inspect(file: Path) -> tuple[bool, int]:
    """Tell whether a file is qcow2 (else raw), and how large its disk is, in bytes.

    Raises:
        As import_disk.
    """
    try:
        with file.open("rb") as reader:
            start = reader.read(qcow2.HEADER_BYTES)
            size_bytes = os.fstat(reader.fileno()).st_size
    except FileNotFoundError as error:
        raise NotFound(
            f"{file} is not there",
            code="no-such-file",
            tried="importing a disk",
            on=str(file),
            next_step="ls",
        ) from error
    except OSError as error:
        raise files.explain(error, "reading a disk", file) from error
    if not start.startswith(qcow2.MAGIC):
        _check_raw(file, start, size_bytes)
        return False, size_bytes
    header = qcow2.parse_header(start)
    quoted = shlex.quote(str(file))
    flatten = f"qemu-img convert -O qcow2 {quoted} whole.qcow2, then import whole.qcow2"
    if header.backing:
        raise _refuse(file, f"it stands on another file, {header.backing}", flatten, code="has-backing-file")
    if header.has_data_file:
        raise _refuse(file, "its contents lie in another file", flatten, code="has-data-file")
    if header.encrypted:
        raise _refuse(file, "it is encrypted", "qemu-img convert, with its secret, to a plain one")
    if header.corrupt or header.unknown_features:
        seen = "QEMU has marked it corrupt" if header.corrupt else "it has features that are not known here"
        raise _refuse(file, seen, f"qemu-img check -r all {quoted}")
    return True, header.size_bytes


async def _copy(file: Path, disk: Path, progress: Progress) -> None:
    """Copy in a thread, which stops at its next report when we are cancelled."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell(fraction: float) -> None:
        if stop.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        loop.call_soon_threadsafe(progress, "copying the disk", fraction)

    try:
        await asyncio.to_thread(copy, file, disk, tell)
    finally:
        stop.set()


def copy(source: Path, target: Path, progress: Callable[[float], None]) -> None:
    """Copy a file: by sharing its blocks where the file system can, else with its holes.

    Raises:
        StoreError: it cannot be read or written; no target is left.
    """
    try:
        with source.open("rb") as reader, target.open("xb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            os.fsync(writer.fileno())
        progress(1.0)
    except OSError:
        target.unlink(missing_ok=True)
        files.copy_sparse(source, target, progress)


def _check_raw(file: Path, start: bytes, size_bytes: int) -> None:
    for offset, magic, what in _FOREIGN:
        if start[offset : offset + len(magic)] == magic:
            unpack = "unpack it first" if "packed" in what else "qemu-img convert -O qcow2 FILE disk.qcow2"
            raise _refuse(file, f"it is {what}", unpack)
    if size_bytes < 1024 * 1024 or size_bytes % 512:
        raise _refuse(file, f"{size_bytes} bytes are no disk", "check that this is the right file")


def has_boot_code(sector: bytes) -> bool:
    """Tell whether a BIOS would start this first sector: code before the partition table, signature at its end."""
    return sector[510:512] == b"\x55\xaa" and any(sector[:440])


async def _read_start(file: Path, format_name: str, scratch: Path) -> bytes:
    sector = scratch / "sector"
    await command.run(
        ["qemu-img", "dd", "-f", format_name, "-O", "raw", "bs=512", "count=1", f"if={file}", f"of={sector}"],
        deadline_s=60.0,
        package="qemu-utils",
    )
    data = sector.read_bytes()
    sector.unlink()
    return data


async def _convert(file: Path, disk: Path) -> None:
    await command.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(file), str(disk)],
        deadline_s=_DEADLINE_S,
        package="qemu-utils",
    )
    files.sync_file(disk)


def _refuse(file: Path, seen: str, advice: str, code: str = "bad-disk") -> Refused:
    return Refused(
        f"{file.name} cannot be imported: {seen}",
        code=code,
        tried="importing a disk",
        on=str(file),
        seen=seen,
        next_step=advice,
    )
