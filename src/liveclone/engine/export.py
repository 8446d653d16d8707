"""Write a snapshot into one file, for another host, or for other people.

    check    scrubbed and proven (search.check_public), or the user knows; sealed; every part is what was captured
    flatten  the disk into one layer, in a folder beside the snapshots that `sweep` takes if we die
    index    size and digest of each file, signed with the host's key
    write    tar, zstd (formats/export_file); each file is compared with its digest on its way

The file has a name only when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import zstandard

from .. import trace
from ..errors import Corrupt, Refused, Unsupported
from ..formats import export_file
from ..host import files, locks, new_file
from ..ids import new_id
from ..model import base
from ..model.base import now
from ..model.export import Index, Member, SignedIndex
from ..model.snapshot import Part, Snapshot
from ..units import MIB
from . import parts, seal, search, thread
from .context import Context
from .thread import GoOn

_LEVEL = 3
_CHUNK = MIB


@dataclass(frozen=True)
class Exported:
    """What was written. `unproven`: why the snapshot may hold secrets, as its user knows; else empty."""

    snapshot: str
    file: str
    size_bytes: int
    content_bytes: int
    key: str
    unproven: str = ""


@dataclass(frozen=True)
class _Source:
    """A file of the archive, and where its content is: a file, or these bytes."""

    member: Member
    content: Path | bytes


async def export(ctx: Context, text: str, target: Path, *, i_know: bool = False) -> Exported:
    """Write the snapshot that `text` names to the new file `target`.

    Args:
        i_know: also one that was not scrubbed, or in which something was found.

    Raises:
        Refused: it was not proven to hold no secrets (code "not-proven"); there is a file of that name.
        NotFound: no such snapshot, or no folder for the file. Unsupported: it is libvirt's.
        Corrupt: a part is not what was captured. StoreError: no room, no permission.
        No file is left in any case, and the snapshot is not changed but for its sealing.
    """
    found = ctx.snapshots.find(text)
    unproven = _check(ctx, found, i_know=i_know)
    target = target.absolute()
    new_file.check_free(target)
    await seal.finish(ctx, found)
    async with ctx.hold_snapshot(found.id, f"exporting {found.name}", shared=True) as snapshot:
        ctx.progress("checking the parts", None)
        await asyncio.to_thread(parts.check, ctx, snapshot)
        async with _scratch(ctx, snapshot) as scratch:
            trace.at("export.begun")
            sources = await _collect(ctx, snapshot, scratch)
            trace.at("export.collected")
            signed = _sign(ctx, snapshot, sources)
            await thread.run(lambda go_on: _write(ctx, target, signed, sources, go_on), undo=target.unlink)
    return Exported(
        snapshot=snapshot.name,
        file=str(target),
        size_bytes=target.stat().st_size,
        content_bytes=sum(source.member.size_bytes for source in sources),
        key=signed.signature.key,
        unproven=unproven,
    )


def _check(ctx: Context, snapshot: Snapshot, *, i_know: bool) -> str:
    """Refuse what may not be given away; return why it may not, if its user knows."""
    if ctx.driver_for(snapshot.driver).shared:
        raise Unsupported(
            f"{snapshot.name} is of a domain of libvirt's, and its definition names what is on this host alone",
            code="libvirt-export",
            tried="exporting a snapshot",
            on=snapshot.name,
            seen=snapshot.driver,
            source_state="not touched",
            next_step="export snapshots of machines that liveclone has started (--driver qemu)",
        )
    try:
        search.check_public(snapshot)
    except Refused as error:
        if not i_know:
            raise
        return f"{error.message}: {error.seen}"
    return ""


@contextlib.asynccontextmanager
async def _scratch(ctx: Context, snapshot: Snapshot) -> AsyncIterator[Path]:
    """Give an empty folder in the home, which is gone afterwards; if we are killed, `sweep` takes it."""
    scratch_id = new_id()
    folder, lock = ctx.layout.snapshot(scratch_id), ctx.layout.lock(f"snapshot-{scratch_id}")
    async with locks.hold_async(lock, f"exporting {snapshot.name}", 5.0):
        files.make_folder(folder)
        try:
            yield folder
        finally:
            files.remove_tree(folder)
            lock.unlink(missing_ok=True)


async def _collect(ctx: Context, snapshot: Snapshot, scratch: Path) -> list[_Source]:
    """Bring together what goes into the file, in its order."""
    folder = ctx.layout.snapshot(snapshot.id)
    ctx.progress("flattening the disk", None)
    disk = scratch / parts.DISK
    await ctx.driver_for(snapshot.driver).flatten(folder / snapshot.disk.file, disk)
    ctx.progress("computing digests", None)
    boot = snapshot.boot
    paths = {
        export_file.STATE: folder / snapshot.device_state.file,
        export_file.KERNEL: Path(boot.kernel) if boot.kernel else None,
        export_file.INITRD: Path(boot.initrd) if boot.initrd else None,
        export_file.DISK: disk,
    }
    known = {
        name: await asyncio.to_thread(_describe, name, path)
        for name, path in paths.items()
        if path is not None
    }
    memory = Member(
        name=export_file.MEMORY, size_bytes=snapshot.memory.size_bytes, digest=snapshot.memory.digest
    )
    known[export_file.MEMORY] = _Source(memory, folder / snapshot.memory.file)
    texts = {
        export_file.MANIFEST: base.encode(_alone(snapshot, known[export_file.DISK].member)),
        export_file.KEY: ctx.evidence(snapshot.id).key(),
    }
    for name, data in texts.items():
        member = Member(name=name, size_bytes=len(data), digest=blake3.blake3(data).hexdigest())
        known[name] = _Source(member, data)
    return [known[name] for name in export_file.ORDER if name in known]


def _describe(name: str, path: Path) -> _Source:
    try:
        return _Source(Member(name=name, size_bytes=path.stat().st_size, digest=parts.digest(path)), path)
    except OSError as error:
        raise files.explain(error, "reading a part of a snapshot", path) from error


def _alone(snapshot: Snapshot, disk: Member) -> Snapshot:
    """Return the manifest with nothing in it that lies elsewhere."""
    alone: Snapshot = snapshot.replace(
        hot=None,
        layers=(),
        image="",
        disk=Part(file=export_file.DISK, size_bytes=disk.size_bytes, digest=disk.digest),
        boot=snapshot.boot.replace(
            kernel=export_file.KERNEL if snapshot.boot.kernel else "",
            initrd=export_file.INITRD if snapshot.boot.initrd else "",
        ),
    )
    return alone


def _sign(ctx: Context, snapshot: Snapshot, sources: Sequence[_Source]) -> SignedIndex:
    members = tuple(source.member for source in sources)
    index = base.builtins(Index(exported_at=now(), snapshot=snapshot.name, members=members))
    return SignedIndex(index=index, signature=ctx.host_key.sign(index))


def _write(ctx: Context, target: Path, signed: SignedIndex, sources: Sequence[_Source], go_on: GoOn) -> None:
    head = base.encode(signed)
    total = sum(source.member.size_bytes for source in sources)
    mtime = int(time.time())
    done = 0
    packer = zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    with new_file.open_new(target) as file, packer.stream_writer(file, closefd=False) as out:
        out.write(export_file.render_header(export_file.INDEX, len(head), mtime))
        out.write(head + bytes(export_file.padding(len(head))))
        for source in sources:
            name, size_bytes = source.member.name, source.member.size_bytes
            out.write(export_file.render_header(name, size_bytes, mtime))
            for data in _read(source):
                go_on()
                ctx.progress(f"writing {name}", done / total)
                out.write(data)
                done += len(data)
            out.write(bytes(export_file.padding(size_bytes)))
            trace.at("export.member")
        out.write(export_file.END)
    trace.at("export.written")


def _read(source: _Source) -> Iterator[bytes]:
    """Yield a file's content; it must be what its digest says."""
    if isinstance(source.content, bytes):
        yield source.content
        return
    hasher, size_bytes = blake3.blake3(), 0
    try:
        with source.content.open("rb", buffering=0) as file:
            while data := file.read(_CHUNK):
                hasher.update(data)
                size_bytes += len(data)
                yield data
    except OSError as error:
        raise files.explain(error, "reading a part of a snapshot", source.content) from error
    if (size_bytes, hasher.hexdigest()) != (source.member.size_bytes, source.member.digest):
        raise Corrupt(
            f"{source.content.name} is not what was captured",
            code="damaged-part",
            tried="exporting a snapshot",
            on=str(source.content),
            seen=f"{size_bytes} bytes of another digest",
            source_state="not touched",
            next_step="take a new snapshot",
        )
