"""A whole save image, for `virsh restore`: what a live clone of a libvirt domain is held against.

It is what `virsh save` would have written of the source, as it was at the snapshot, with name, UUID and disk of the clone's
own in its header. An administrator makes that of it with `virsh save-image-edit`; the time for this is in no figure.

    device state  header, stream without pages ┐
    memory image  pages                        ┘──> header, with room for any clone's XML | stream with all pages
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from liveclone.drivers.libvirt import split
from liveclone.formats import domain_rewrite, libvirt_save, stream_join
from liveclone.host import command, files
from liveclone.units import MIB

DISK = "vda"
RESTORE_DEADLINE_S = 300.0


class SaveImage:
    """One; `write` it first."""

    def __init__(self, path: Path, make_disk: Callable[[Path], None], folder: Path) -> None:
        """Plan one at `path`; `make_disk` makes each clone's disk, in `folder`."""
        self.path, self._make_disk, self._folder = path, make_disk, folder
        self._header = libvirt_save.SaveHeader(xml="")
        self._count = 0

    @property
    def size_mib(self) -> float:
        return self.path.stat().st_size / MIB

    def write(self, state: Path, memory: Path) -> None:
        """Write all of it, of the parts of a snapshot; it is nobody's yet."""
        self._header = split.read_header(state)
        head = libvirt_save.render_header(replace(self._header, data_bytes=0))
        with state.open("rb") as rest, memory.open("rb", buffering=0) as image:
            rest.seek(self._header.stream_offset)
            size = os.fstat(image.fileno()).st_size
            pages = files.read_data(image.fileno(), size)
            with self.path.open("xb", buffering=0) as target:
                target.write(head)
                for piece in stream_join.join(rest.read(), pages, size_bytes=size, block=split.RAM):
                    target.write(piece)
        self._header = replace(self._header, data_bytes=len(head) - libvirt_save.FIXED_BYTES)

    def address(self) -> str:
        """Make it that of another clone, with a new disk, and return the clone's name."""
        self._count += 1
        name = f"{self.path.stem}-{self._count}"
        disk = self._folder / f"{name}.qcow2"
        self._make_disk(disk)
        spec = domain_rewrite.CloneSpec(
            name=name,
            uuid=str(uuid4()),
            disks={DISK: (str(disk), "qcow2")},
            console_log=str(self._folder / f"{name}.log"),
        )
        xml = domain_rewrite.rewrite_saved(self._header.xml, spec)
        with self.path.open("r+b", buffering=0) as file:
            file.write(libvirt_save.render_header(replace(self._header, xml=xml)))
        return name

    def forget_cached(self) -> None:
        """Have the kernel forget what it has of the file in memory; on tmpfs that is the file itself, and stays."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())  # only what is on the disk can be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    async def restore(self, uri: str) -> tuple[str, float]:
        """Let virsh restore it, running; return the domain's name, and the seconds that it took."""
        name = await asyncio.to_thread(self.address)
        await asyncio.to_thread(self.forget_cached)
        began = time.monotonic()
        argv = ["virsh", "--connect", uri, "restore", str(self.path), "--running"]
        await command.run(argv, deadline_s=RESTORE_DEADLINE_S)
        return name, time.monotonic() - began
