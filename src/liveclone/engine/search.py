"""Search all parts of a snapshot for secrets: the proof that they are not in it, or where they are.

    memory           the image, flat, without its holes
    device state     the file
    disk             of each layer, down to the image: the file's own bytes, and the clusters in the disk's order

The file's own bytes have what the tables no longer name; the disk's order has what lies across two clusters, and what is
compressed. What is searched for is for `formats/needles` to say. It costs 4 to 10 s a GiB on one processor.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused
from ..formats.needles import Secret, render_needles
from ..host import disk_layers, files
from ..model.base import now
from ..model.scrub import Hit, Scrub
from ..model.snapshot import Snapshot
from . import parts
from .context import Context, Progress, silent

if TYPE_CHECKING:
    from ..formats.finder import Finder

MEMORY, STATE = "memory", "device state"
_BLOCK = 512 * 1024

Blocks = Iterator[tuple[int, bytes]]


@dataclass(frozen=True)
class Places:
    """The files to search: memory image, device state, and the disk's layers, the top one first."""

    memory: Path
    device_state: Path
    layers: Sequence[Path]


async def prove(ctx: Context, text: str, secrets: Sequence[Secret]) -> Scrub:
    """Search a snapshot's parts, whose content is checked first.

    Raises:
        NotFound: there is no such snapshot. Corrupt: it is damaged, or a layer is. StoreError: a part cannot be read.
        Unsupported: a layer is encrypted. Nothing is changed in any case.
    """
    found = ctx.snapshots.find(text)
    async with ctx.hold_snapshot(found.id, "proof", shared=True) as snapshot:
        folder = ctx.layout.snapshot(snapshot.id)
        ctx.progress("checking the parts", None)
        memory = await asyncio.to_thread(parts.check, ctx, snapshot)
        tops = [folder / part.file for part in parts.disks_of(snapshot)]
        layers = [layer for top in tops for layer in disk_layers.find_layers(top)]
        places = Places(Path(memory.path), folder / snapshot.device_state.file, layers)
        return await asyncio.to_thread(search, places, secrets, ctx.progress)


def search(places: Places, secrets: Sequence[Secret], progress: Progress = silent) -> Scrub:
    """Search files for secrets; blocks.

    Raises:
        StoreError, Corrupt, Unsupported: a file cannot be read to its end.
    """
    from ..formats.finder import Finder  # numpy: for searches alone

    began = time.monotonic()
    names = dict.fromkeys(secret.name for secret in secrets)
    needles = {(n.name, n.data): n for secret in secrets for n in render_needles(secret)}
    searched = {needle.name for needle in needles.values()}
    work = _Work(Finder(list(needles.values())), progress)
    work.total = _total(places)
    work.through(MEMORY, _read_file(places.memory))
    work.through(STATE, _read_file(places.device_state))
    for index, path in enumerate(places.layers):
        part = layer_name(path)
        work.through(f"{part}, file", _read_file(path))
        with disk_layers.Disk(list(places.layers[index:])) as disk:
            work.through(part, disk.read_own(work.finder.longest))
    return Scrub(
        at=now(),
        secrets=len(names),
        found=tuple(work.found()),
        not_searched=tuple(name for name in names if name not in searched),
        searched_bytes=work.bytes,
        took_ms=round((time.monotonic() - began) * 1000, 3),
    )


def layer_name(path: Path) -> str:
    """Return how a disk layer is called in a proof: by its folder, which is its snapshot's or image's."""
    return f"disk {path.parent.name}"


def check_public(snapshot: Snapshot) -> None:
    """Let a snapshot be given to others only if it was scrubbed, and nothing was found in it.

    Whatever hands one out (engine/export) calls this, unless its user says that they know.

    Raises:
        Refused: it may hold secrets; `seen` says why.
    """
    proof = snapshot.scrub
    if proof is not None and proof.is_clean:
        return
    if proof is None:
        seen = "it was taken without --scrub"
    else:
        first = proof.found[0]
        seen = f"{first.secret} is in its {first.part} at {first.offset:#x}, as {first.form}"
    raise Refused(
        f"snapshot {snapshot.name} may hold secrets of {snapshot.source_name}",
        code="not-proven",
        tried="giving a snapshot to others",
        on=snapshot.name,
        seen=seen,
        next_step=f"liveclone snapshot {snapshot.source_name} --scrub, or --i-know",
    )


@dataclass
class _Work:
    """One search: what has been found, and how far it is."""

    finder: Finder
    progress: Callable[[str, float | None], None]
    total: int = 0
    done: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    offsets: dict[tuple[str, str, str], set[int]] = field(default_factory=dict)

    def through(self, part: str, blocks: Blocks) -> None:
        from ..formats.finder import Search

        search = Search(self.finder)
        self.bytes[part] = 0
        for offset, data in blocks:
            self.progress(f"searching {part}", min(1.0, self.done / max(1, self.total)))
            for at, needle in search.feed(offset, data):
                self.offsets.setdefault((needle.name, part, needle.form), set()).add(at)
            self.bytes[part] += len(data)
            self.done += len(data)

    def found(self) -> Iterator[Hit]:
        for (name, part, form), offsets in self.offsets.items():
            yield Hit(secret=name, part=part, offset=min(offsets), form=form, places=len(offsets))


def _read_file(path: Path) -> Blocks:
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for start, length in files.data_ranges(file.fileno(), size):
                for at in range(start, start + length, _BLOCK):
                    yield at, os.pread(file.fileno(), min(_BLOCK, start + length - at), at)
    except OSError as error:
        raise files.explain(error, "searching a part", path) from error


def _total(places: Places) -> int:
    """Return about how many bytes there are to be read."""
    used = [path.stat().st_blocks * 512 for path in (places.memory, places.device_state, *places.layers)]
    return sum(used) + sum(used[2:])
