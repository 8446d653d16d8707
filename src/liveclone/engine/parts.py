"""A machine's disk, and the parts of a snapshot held against its manifest before QEMU sees a byte of them.

| part         | when a clone starts                              | when it is sealed        |
|--------------|--------------------------------------------------|--------------------------|
| device state | digest                                           | digest                   |
| disk layer   | size and stamp, or digest                        | digest                   |
| memory, hot  | stamp (inode, mtime, ctime) as at the capture    | digest, once             |
| memory, disk | digest once per boot of the host, then its stamp | digest                   |
| what a copied disk stands on | its size and time                 | -                        |

The memory image is not read whole for each clone: that would cost time in proportion to RAM. The stamp tells whether any
write(2) has touched it since it became immutable; if it does not fit, the digest decides. (With libvirt the hook links the
image, and QEMU's user is let at the parts: that changes the ctime, which then does not count.) What a stamp cannot see is
a root user who writes through a shared mapping (docs/hazards.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import blake3

from ..errors import Corrupt, NotFound
from ..formats import qcow2
from ..host import disk_layers, files
from ..host.process import boot_id
from ..model.machine import Machine, Memory, MemorySource
from ..model.snapshot import HotImage, Part, Snapshot
from .context import Context

STATE, MEMORY, DISK = "state", "memory", "disk.qcow2"
DISKS = "disk"  # how the name of each disk of a snapshot begins
BOOT = KERNEL, INITRD = "kernel", "initrd"  # of a snapshot that was imported: others have their image's
DAMAGED = "damaged"  # why nothing may start from this snapshot any more (recheck.py)
_STAMPS = "stamps.json"


def make_overlay(path: Path, backing: Path, size_bytes: int, form: str = "qcow2") -> None:
    """Write an empty disk layer on top of `backing`, which is written in `form`."""
    data = qcow2.render_overlay(str(backing), form, size_bytes)
    try:
        path.write_bytes(data)
        path.chmod(0o600)
    except OSError as error:
        raise files.explain(error, "making a disk layer", path) from error


def on_layers(machine: Machine, snapshot_id: str, tops: Mapping[str, str]) -> Machine:
    """Return the manifest of a machine of ours that stands on a snapshot: `tops` has the new top layer for each old one."""
    changed: Machine = machine.replace(
        disk=tops.get(machine.disk, machine.disk),
        disks=tuple(disk.replace(path=tops.get(disk.path, disk.path)) for disk in machine.disks),
        layers=(snapshot_id, *machine.layers),
    )
    return changed


def digest(path: Path) -> str:
    """Return the blake3 of a file, computed on all processors, reading through a mapping."""
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    hasher.update_mmap(path)
    return hasher.hexdigest()


def part(path: Path, *, with_digest: bool) -> Part:
    """Describe a file of a snapshot."""
    return Part(file=path.name, size_bytes=path.stat().st_size, digest=digest(path) if with_digest else "")


def stamp(path: Path) -> HotImage:
    """Return what tells a file apart from itself after any write."""
    found = path.stat()
    return HotImage(
        path=str(path), inode=found.st_ino, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns
    )


def check(ctx: Context, snapshot: Snapshot) -> Memory:
    """Hold every part against the manifest; return where clones map their memory from.

    Raises:
        Corrupt: a part is missing, has another size or another content. Nothing was started.
    """
    folder = ctx.layout.snapshot(snapshot.id)
    if (folder / DAMAGED).exists():
        raise _corrupt(snapshot, folder / snapshot.memory.file, (folder / DAMAGED).read_text())
    state = folder / snapshot.device_state.file
    _check_size(snapshot, state, snapshot.device_state)
    if digest(state) != snapshot.device_state.digest:
        raise _corrupt(snapshot, state, "its content is not what was captured")
    for part in disks_of(snapshot):
        disk = folder / part.file
        _check_size(snapshot, disk, part)
        _check_stamp(snapshot, folder, disk, part)
    for layer in snapshot.layers:
        _check_layer(ctx, snapshot, layer)
    for below, seen in _read_stamps(folder).items():
        if Path(below).is_absolute() and _below_line(Path(below)) != seen:
            raise _corrupt(snapshot, Path(below), "it was written to, or removed, since the snapshot")
    hot = snapshot.hot
    if hot is not None and Path(hot.path).exists():
        image = Path(hot.path)
        _check_size(snapshot, image, snapshot.memory)
        if not _is_untouched(snapshot, hot, stamp(image)):
            _check_stamp(snapshot, folder, image, snapshot.memory)
        return Memory(path=hot.path, source=MemorySource.PRIVATE_HOT)
    sealed = folder / snapshot.memory.file
    if not snapshot.memory.digest:
        raise _corrupt(snapshot, sealed, "the hot image is gone, and no durable copy was finished")
    _check_size(snapshot, sealed, snapshot.memory)
    _check_stamp(snapshot, folder, sealed, snapshot.memory)
    return Memory(path=str(sealed), source=MemorySource.PRIVATE_DISK)


def disks_of(snapshot: Snapshot) -> tuple[Part, ...]:
    """Return the frozen disks, one or more."""
    return (snapshot.disk, *(disk.part for disk in snapshot.disks[1:]))


def _is_untouched(snapshot: Snapshot, captured: HotImage, now: HotImage) -> bool:
    """Tell whether the image is as it was."""
    return now == (captured.replace(ctime_ns=now.ctime_ns) if _ctime_changes(snapshot) else captured)


def _ctime_changes(snapshot: Snapshot) -> bool:
    """Tell whether parts get other names, owners and readers though nobody writes them, as libvirt's do."""
    return snapshot.driver == "libvirt"


def _check_layer(ctx: Context, snapshot: Snapshot, layer: str) -> None:
    """Check a frozen layer further down. Of a removed snapshot only the layer is left, without a manifest."""
    folder = ctx.layout.snapshot(layer)
    try:
        known = ctx.snapshots.load(layer)
    except NotFound:
        if not list(folder.glob(f"{DISKS}*")):
            raise _corrupt(snapshot, folder / DISK, "it is missing") from None
        return
    for part in disks_of(known):
        _check_size(snapshot, folder / part.file, part)
        _check_stamp(snapshot, folder, folder / part.file, part)


def remember_stamp(folder: Path, path: Path) -> None:
    """Record that this file, as it is now, is what its manifest says; valid until the host boots again."""
    stamps = _read_stamps(folder)
    stamps[path.name] = _line(path)
    files.write_atomic(folder / _STAMPS, json.dumps(stamps).encode(), durable=False)


def remember_below(folder: Path, top: Path) -> None:
    """Record what the copy of somebody else's disk stands on. Its owner may write that, and the copy is worth nothing then:
    `virsh blockcommit` does. There is no digest of it, so what it was holds beyond a boot of the host.
    """
    stamps = _read_stamps(folder)
    stamps |= {str(layer): _below_line(layer) for layer in disk_layers.find_layers(top)[1:]}
    files.write_atomic(folder / _STAMPS, json.dumps(stamps).encode(), durable=False)


def _below_line(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns}"


def _check_size(snapshot: Snapshot, path: Path, expected: Part) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _corrupt(snapshot, path, f"it is missing ({error.strerror})") from error
    if size != expected.size_bytes:
        raise _corrupt(snapshot, path, f"{size} bytes instead of {expected.size_bytes}")


def _check_stamp(snapshot: Snapshot, folder: Path, path: Path, expected: Part) -> None:
    """Accept a file whose stamp is known good; else let the digest decide, and remember."""
    known, now = _read_stamps(folder).get(path.name, ""), _line(path)
    if _ctime_changes(snapshot):
        known, now = known.rpartition(" ")[0], now.rpartition(" ")[0]
    if known == now:
        return
    if not expected.digest:
        raise _corrupt(snapshot, path, "it was written to before its digest was taken")
    if digest(path) != expected.digest:
        raise _corrupt(snapshot, path, "its content is not what was captured")
    remember_stamp(folder, path)


def _line(path: Path) -> str:
    found = path.stat()
    return f"{boot_id()} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _read_stamps(folder: Path) -> dict[str, str]:
    try:
        stamps: dict[str, str] = json.loads((folder / _STAMPS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stamps


def _corrupt(snapshot: Snapshot, path: Path, seen: str) -> Corrupt:
    return Corrupt(
        f"snapshot {snapshot.name} is damaged: {path.name} does not match its manifest",
        code="damaged-part",
        tried="checking the snapshot's parts",
        on=str(path),
        seen=seen,
        source_state="not touched",
        next_step=f"liveclone snapshot remove {snapshot.name}, and take a new one",
    )
