"""The variables of UEFI firmware: a small file that is each machine's own, and the flash device that QEMU makes of it.

    capture     flash ──> migration stream (RAM block system.flash1) ──> device state of the snapshot
    clone       device state ──> nvram.fd in the clone's folder ──> flash, which is loaded with the rest of the state

So variables and memory are of one instant, and stand behind one digest. When a clone first runs, its QEMU writes the whole
flash into the file, so the two cannot differ later either.

But QEMU marks no page of its flash as changed when the guest writes it (pflash_update in hw/block/pflash_cfi01.c), so what
is written after a page went out is missing in the stream, while the memory believes that it is there. Such a write reaches
the file at once: if the file was written during the capture, there is no snapshot. A guest does it at its boot and in
updates of its firmware or boot loader, hardly ever else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import Conflict, HypervisorError, LivecloneError
from ...formats.domain_xml import Domain
from ...host import files, process
from . import disk, registry, split
from .connection import Connection

FILE = "nvram.fd"
FLASH = "system.flash1"  # `system.flash0` is the firmware itself, which nobody writes
_LOOKING = "looking at the firmware's variables"


@dataclass(frozen=True)
class Stamp:
    """A file of variables at some time: what it is, and when it was last written to."""

    path: Path
    format: str
    inode: int
    mtime_ns: int


def stamp(connection: Connection, domain: Domain) -> Stamp | None:
    """Return what tells later whether the guest has written its variables since; None for a domain without any.

    Raises:
        HypervisorError: its QEMU has another file open than libvirt says. Interrupted: it has ended.
    """
    if not domain.nvram:
        return None
    path = Path(domain.nvram)
    try:
        if disk.holds(connection.process, path):
            return _stamp(path, domain.nvram_format)
    except OSError as error:
        raise _explain(connection, error, path) from error
    raise HypervisorError(
        f"{connection.name} runs with other firmware variables than those in its file",
        code="other-nvram",
        tried=_LOOKING,
        on=connection.name,
        seen=str(path),
        source_state="running, not touched",
        next_step=f"put the file back, or shut {connection.name} down and start it",
    )


def read_unwritten(connection: Connection, before: Stamp) -> bytes:
    """Return the variables, which were the same all the time since `before`; empty for qcow2, which is QEMU's to read.

    Raises:
        Conflict: they were written to. Interrupted: the QEMU has ended.
    """
    try:
        content = before.path.read_bytes() if before.format == "raw" else b""
        if _stamp(before.path, before.format) == before:
            return content
    except OSError as error:
        raise _explain(connection, error, before.path) from error
    raise Conflict(
        f"the guest of {connection.name} wrote its firmware's variables while the snapshot was taken",
        code="nvram-written",
        tried="capturing its firmware's variables",
        on=connection.name,
        seen=f"{before.path} was written to",
        source_state="running",
        next_step="take the snapshot again when the guest has finished booting, or updating its firmware",
    )


def check(name: str, stream: bytes, variables: bytes) -> None:
    """Hold the flash in a page-less stream that was just captured against the file's content, where that is known.

    Raises:
        HypervisorError: they differ. Corrupt: the stream has no such flash.
    """
    flash = _read_flash(stream)
    if variables and flash != variables:
        raise HypervisorError(
            f"what QEMU has saved of the firmware's variables of {name} is not what is in their file",
            code="nvram-differs",
            tried="capturing its firmware's variables",
            on=name,
            seen=f"{len(flash)} bytes of {FLASH}, {len(variables)} bytes in the file",
            source_state="running",
            next_step=f"shut {name} down and start it",
        )


def write(state: Path, target: Path, form: str) -> None:
    """Write the variables that a device state holds to a new file, "raw" or "qcow2".

    Raises:
        Corrupt: the state has none. StoreError: no room.
    """
    header = split.read_header(state)
    plain = target if form == "raw" else target.with_suffix(".raw")
    try:
        with state.open("rb") as file:
            file.seek(header.stream_offset)
            flash = _read_flash(file.read())
        files.write_atomic(plain, flash, durable=False)
        if plain != target:
            disk.run_qemu_img("convert", "-f", "raw", "-O", form, str(plain), str(target), on=target)
            target.chmod(0o600)
            plain.unlink()
    except OSError as error:
        raise files.explain(error, "writing the firmware's variables", target) from error


def _read_flash(stream: bytes) -> bytes:
    from ...formats import stream_block  # numpy

    return stream_block.read_block(stream, FLASH)


def _stamp(path: Path, form: str) -> Stamp:
    found = path.stat()
    return Stamp(path, form, found.st_ino, found.st_mtime_ns)


def _explain(connection: Connection, error: OSError, path: Path) -> LivecloneError:
    if process.is_alive(connection.process):
        return files.explain(error, _LOOKING, path)
    return registry.ended(connection.name, _LOOKING, "no such process")
