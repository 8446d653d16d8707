"""Make a snapshot of a file that `export` wrote, here or elsewhere. Nothing in it is believed before it was looked at.

    index      signed by whom it says; its members those of the format; room for all of them at their full size
    manifest   every value that will be a path, a name or a part of a command line
    members    size and digest, one after the other, each into the new snapshot's folder under a name of ours
    disk       stands on nothing and names no other file
    manifest   written last: until then there is no snapshot, and `sweep` takes the folder if we die

The signature says who made it, not whether they are to be trusted: the user is told, and decides. Device state is loaded by
QEMU, which is not made to withstand a hostile one (docs/hazards.md).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import blake3
import zstandard

from .. import trace
from ..errors import Corrupt, NotFound, Refused, Unsupported
from ..formats import export_file, qcow2
from ..host import files, locks, machine
from ..identity import signature
from ..ids import check_name, is_id, new_id
from ..model import base
from ..model.export import Index, Member, SignedIndex
from ..model.machine import Boot
from ..model.network import NetworkKind
from ..model.snapshot import HotImage, Part, Snapshot, SnapshotState
from ..units import MIB, PAGE, render_size
from . import capacity, parts, thread
from .context import Context
from .thread import GoOn

_CHUNK = MIB
_WINDOW = 128 * MIB  # what zstd accepts without --long
_FILES = {
    export_file.KEY: "key",
    export_file.STATE: parts.STATE,
    export_file.KERNEL: parts.KERNEL,
    export_file.INITRD: parts.INITRD,
    export_file.DISK: parts.DISK,
    export_file.MEMORY: parts.MEMORY,
}

# What becomes a part of QEMU's command line, where a comma or a path would say more than it should.
_MACHINE_TYPE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CPU = re.compile(r"[A-Za-z0-9._+=,-]{1,1000}")
_NIC = re.compile(r"[a-z0-9]{1,16}")
_MOST_VCPUS = 1024


@dataclass(frozen=True)
class Imported:
    """A snapshot that was imported, and the public key of the host that exported it, in base64."""

    snapshot: Snapshot
    key: str
    is_own: bool  # the key is this host's


async def import_(ctx: Context, file: Path, name: str = "") -> Imported:
    """Make a snapshot of an exported one, under its own name or another; clones can start, and it is sealed.

    Raises:
        NotFound: there is no such file. Corrupt: it is damaged, or something else.
        Refused: its name is taken; there is no room. Unsupported: it is of a driver that is not here.
        Nothing is left in any case.
    """
    if name:
        _check_name_is_free(ctx, name)
    snapshot_id = new_id()
    lock = ctx.layout.lock(f"snapshot-{snapshot_id}")
    async with locks.hold_async(lock, "importing a snapshot", 5.0), AsyncExitStack() as undo:
        undo.callback(_remove, ctx, snapshot_id)
        files.make_folder(ctx.layout.snapshot(snapshot_id))
        trace.at("import.begun")
        imported = await thread.run(_Import(ctx, file, name, snapshot_id).carry_out)
        ctx.snapshots.create(imported.snapshot)
        ctx.snapshots.save(imported.snapshot)  # durable, as the word `sealed` says
        undo.pop_all()
    return imported


def _remove(ctx: Context, snapshot_id: str) -> None:
    ctx.layout.hot_image(snapshot_id).unlink(missing_ok=True)
    ctx.snapshots.remove(snapshot_id)
    ctx.layout.lock(f"snapshot-{snapshot_id}").unlink(missing_ok=True)


class _Import:
    """One import on its way, in a thread."""

    def __init__(self, ctx: Context, file: Path, name: str, snapshot_id: str) -> None:
        self.ctx, self.file, self.name, self.id = ctx, file, name, snapshot_id
        self.folder = ctx.layout.snapshot(snapshot_id)
        self.total = self.done = 0

    def carry_out(self, go_on: GoOn) -> Imported:
        self.go_on = go_on
        try:
            with self.file.open("rb") as file:
                unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
                with unpacker.stream_reader(file, closefd=False) as self.stream:
                    return self._read()
        except FileNotFoundError as error:
            raise NotFound(
                f"{self.file} is not there",
                code="no-such-file",
                tried="importing a snapshot",
                on=str(self.file),
                next_step="ls",
            ) from error
        except (zstandard.ZstdError, RecursionError) as error:
            raise export_file.corrupt(str(error)) from error
        except OSError as error:
            raise files.explain(error, "reading an exported snapshot", self.file) from error
        except Corrupt as error:
            error.on = error.on or str(self.file)
            raise

    def _read(self) -> Imported:
        self.ctx.progress("reading the index", None)
        name, size_bytes = export_file.parse_header(self._exactly(export_file.BLOCK))
        if name != export_file.INDEX or size_bytes > export_file.LONGEST_JSON:
            raise export_file.corrupt(f"its first file is {name[:60]!r}")
        signed, index = export_file.parse_index(self._exactly(size_bytes), _fits)
        self._exactly(export_file.padding(size_bytes))
        self.total = sum(member.size_bytes for member in index.members)
        self._check_room()
        given = self._read_manifest(index)
        for member in index.members[1:]:
            self._store(member)
            trace.at("import.member")
        self._check_end()
        return self._finish(signed, index, given)

    def _check_room(self) -> None:
        """Zeros count too: however little a file may be, no more comes out of it than there is room for."""
        free_bytes = machine.file_system(self.ctx.layout.home).free_bytes
        if self.total > free_bytes:
            raise Refused(
                "there is no room for the snapshot",
                code="disk-full",
                tried="importing a snapshot",
                on=str(self.ctx.layout.home),
                seen=f"{render_size(self.total)} at its full size, {render_size(free_bytes)} free",
                source_state="not touched",
                next_step=f"make room: df -h {self.ctx.layout.home}",
            )

    def _read_manifest(self, index: Index) -> Snapshot:
        member = index.members[0]
        given = base.decode(b"".join(self._content(member)), Snapshot, export_file.MANIFEST)
        problem = _find_problem(given, {one.name: one.size_bytes for one in index.members})
        if problem:
            raise export_file.corrupt(f"its manifest: {problem}")
        if given.driver not in {"qemu", self.ctx.driver.name} - {"libvirt"}:
            raise Unsupported(
                f"the snapshot was taken with the driver {given.driver[:20]}",
                code="other-driver",
                tried="importing a snapshot",
                on=str(self.file),
                seen=given.driver[:20],
                source_state="not touched",
                next_step="import it where that driver is",
            )
        self.name = self.name or check_name(given.name, "snapshot name")
        _check_name_is_free(self.ctx, self.name)
        return given

    def _content(self, member: Member) -> Iterator[bytes]:
        """Yield what the next file holds, which must be the one that the index has here."""
        name, size_bytes = export_file.parse_header(self._exactly(export_file.BLOCK))
        if (name, size_bytes) != (member.name, member.size_bytes):
            raise export_file.corrupt(
                f"{name[:60]!r} with {size_bytes} bytes is where {member.name} should be"
            )
        hasher, left = blake3.blake3(), size_bytes
        while left:
            data = self._exactly(min(_CHUNK, left))
            hasher.update(data)
            left -= len(data)
            yield data
        if hasher.hexdigest() != member.digest:
            raise export_file.corrupt(f"{member.name} has another digest than its index says")
        self._exactly(export_file.padding(size_bytes))

    def _store(self, member: Member) -> None:
        path = self.folder / _FILES[member.name]
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                os.ftruncate(fd, member.size_bytes)
                offset = 0
                for data in self._content(member):
                    self.go_on()
                    self.ctx.progress(f"importing {member.name}", self.done / self.total)
                    files.write_nonzero(fd, data, offset)
                    offset += len(data)
                    self.done += len(data)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise files.explain(error, "importing a snapshot", path) from error

    def _check_end(self) -> None:
        end = self._exactly(len(export_file.END))
        more = self.stream.read(_CHUNK)  # tar fills up to its own block
        if any(end) or any(more) or self.stream.read(1):
            raise export_file.corrupt("something follows its last file")

    def _exactly(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            piece = self.stream.read(size_bytes - len(data))
            if not piece:
                raise export_file.corrupt("it ends early")
            data += piece
        return bytes(data)

    def _finish(self, signed: SignedIndex, index: Index, given: Snapshot) -> Imported:
        """Check what has come in, and return the manifest that makes a snapshot of it."""
        _check_disk(self.folder / parts.DISK, given.disk_bytes)
        members = {member.name: member for member in index.members}
        hot = self._warm(self.folder / parts.MEMORY)
        for name in (parts.STATE, parts.DISK, parts.MEMORY):
            parts.remember_stamp(self.folder, self.folder / name)
        files.sync_folder(self.folder)
        snapshot: Snapshot = given.replace(
            id=self.id,
            name=self.name,
            state=SnapshotState.SEALED,
            image="",
            boot=Boot(
                kernel=str(self.folder / parts.KERNEL) if export_file.KERNEL in members else "",
                initrd=str(self.folder / parts.INITRD) if export_file.INITRD in members else "",
                cmdline=given.boot.cmdline,
            ),
            memory=_part(members[export_file.MEMORY]),
            hot=hot,
            device_state=_part(members[export_file.STATE]),
            disk=_part(members[export_file.DISK]),
            disk_format="qcow2",
            disks=(),
            addresses=(),
            layers=(),
        )
        trace.at("import.read")
        own = self.ctx.layout.host_key.exists() and self.ctx.host_key.public_raw()
        return Imported(snapshot, signed.signature.key, is_own=_public(signed) == own)

    def _warm(self, memory: Path) -> HotImage | None:
        """Copy the memory image to tmpfs, if there is room; else clones map the sealed one."""
        try:
            capacity.check_hot(self.ctx, memory.stat().st_size, f"the memory image of {self.name}")
        except Refused:
            return None

        def tell(fraction: float) -> None:
            self.go_on()
            self.ctx.progress("copying memory to tmpfs", fraction)

        hot = self.ctx.layout.hot_image(self.id)
        files.copy_sparse(memory, hot, tell, mode=0o400)
        return parts.stamp(hot)


def _part(member: Member) -> Part:
    return Part(file=_FILES[member.name], size_bytes=member.size_bytes, digest=member.digest)


def _public(signed: SignedIndex) -> bytes:
    try:
        return base64.b64decode(signed.signature.key, validate=True)
    except binascii.Error:
        return b""


def _fits(signed: SignedIndex) -> bool:
    return signature.fits(signed.index, signed.signature, _public(signed))


def _check_name_is_free(ctx: Context, name: str) -> None:
    check_name(name, "snapshot name")
    for other in ctx.snapshots.list():
        if other.name == name:
            raise Refused(
                f"there is a snapshot named {name} already",
                code="name-taken",
                tried="importing a snapshot",
                on=name,
                seen=f"id {other.id}",
                source_state="not touched",
                next_step="give another with --name, or remove that one",
            )


def _find_problem(given: Snapshot, sizes: dict[str, int]) -> str:
    """Return what in a manifest cannot be, and might do harm; empty if nothing."""
    hardware, boot = given.hardware, given.boot
    ram_bytes = hardware.ram_bytes
    texts = (boot.cmdline, hardware.hypervisor, given.source_name, given.source_generation)
    checks = {
        "its source": is_id(given.source),
        "its RAM": ram_bytes == sizes[export_file.MEMORY] and ram_bytes % PAGE == 0,
        "its processors": 1 <= hardware.vcpus <= _MOST_VCPUS,
        "its machine type": _MACHINE_TYPE.fullmatch(hardware.machine_type),
        "its processor's model": _CPU.fullmatch(hardware.cpu),
        "its NICs": len(given.nics) <= 1 and all(_NIC.fullmatch(nic) for nic in given.nics),
        "its network": given.network is not NetworkKind.LIBVIRT,
        "its disks": not given.disks,
        "its kernel": bool(boot.kernel) == (export_file.KERNEL in sizes),
        "its initrd": bool(boot.initrd) == (export_file.INITRD in sizes),
        "a text in it": all(text.isprintable() for text in texts),
    }
    return next((what for what, holds in checks.items() if not holds), "")


def _check_disk(path: Path, size_bytes: int) -> None:
    """See that QEMU opens no other file with this one, which may come from anybody."""
    try:
        with path.open("rb") as file:
            header = qcow2.parse_header(file.read(qcow2.HEADER_BYTES))
    except Refused as error:
        raise export_file.corrupt(f"its disk: {error.seen}") from error
    problems = {
        f"stands on another file, {header.backing[:60]}": header.backing,
        "has its content in another file": header.has_data_file,
        "is encrypted": header.encrypted,
        "is marked corrupt": header.corrupt,
        "has unknown features": header.unknown_features,
        f"has {header.size_bytes} bytes": header.size_bytes != size_bytes,
    }
    for problem, found in problems.items():
        if found:
            raise export_file.corrupt(f"its disk {problem}")
