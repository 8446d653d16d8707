"""The user that QEMU runs as under this libvirt (Debian: libvirt-qemu), and what of ours it may open.

libvirt gives that user what a domain writes: it changes the owner of the file, and gives it back at the domain's end.
With the layers below it does the same, and never gives them back, though all clones stand on them. So a clone's
description names each layer of ours as one that libvirt leaves alone (formats/domain_disks.py), and they stay root's. By
access control lists, for that one user, and only when a machine is about to need it:

    HOME, HOT, and folders in them on the way     may be passed through; what is in them is seen by name only
    disk layers of images and snapshots           may be read
    the memory image                              may be read and written: libvirt has QEMU open it so (hook_program.py)

Everything else in these folders (manifests, keys, evidence, device states) has no such entry. Where QEMU runs as root
there is nothing to do.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import Refused
from ...formats import domain_xml
from ...formats.domain_disks import Layer
from ...host import acl, disk_layers, files
from .link import Link


@dataclass(frozen=True)
class Access:
    """What QEMU's user may open. `roots`: the folders that are ours, in which it is let pass. `user` 0: root."""

    user: int
    group: int
    roots: tuple[Path, ...]

    def is_ours(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self.roots)

    def grant(self, path: Path, *, write: bool = False) -> None:
        """Let QEMU open a file of ours, and come to it; one that is not ours is passed over.

        Raises:
            StoreError: the file system keeps no access control lists. Refused: the way to our folders is barred.
        """
        if self.user == 0 or not self.is_ours(path):
            return
        self.open_way(path.parent)
        try:
            if path.stat().st_uid == self.user and not write:
                os.chown(path, 0, 0)  # libvirt's doing, when it was a machine's top layer
            acl.allow(path, self.user, acl.READ | (acl.WRITE if write else 0))
        except OSError as error:
            raise files.explain(error, "letting QEMU open a file", path) from error

    def open_way(self, folder: Path) -> None:
        """Let QEMU pass through a folder of ours and those above it.

        Raises:
            StoreError, Refused: as `grant`.
        """
        if self.user == 0 or not self.is_ours(folder):
            return
        for above in (folder, *folder.parents):
            try:
                if self.is_ours(above):
                    acl.allow(above, self.user, acl.PASS)
                elif not acl.may_pass(above, self.user, self._groups()):
                    raise self._barred(folder, above)
            except OSError as error:
                raise files.explain(error, "letting QEMU come to a file", above) from error

    def _groups(self) -> frozenset[int]:
        return frozenset({self.group, *(os.getgrouplist(self._name(), self.group) if self._name() else ())})

    def _name(self) -> str:
        try:
            return pwd.getpwuid(self.user).pw_name
        except KeyError:
            return ""

    def _barred(self, folder: Path, above: Path) -> Refused:
        return Refused(
            f"QEMU cannot come to {folder}: as {self._name() or self.user} it may not pass through {above}",
            code="qemu-cannot-reach",
            tried="letting QEMU come to a file",
            on=str(folder),
            seen=f"owner {above.stat().st_uid}, mode {above.stat().st_mode & 0o7777:04o}",
            source_state="not touched",
            next_step="set LIVECLONE_HOME (and LIVECLONE_HOT) to folders that others may pass, such as /var/lib/liveclone",
        )


async def find(link: Link, roots: Sequence[Path]) -> Access:
    """Return what concerns the QEMU of this libvirt."""
    xml = await link.call("asking what it can do", link.connection.getCapabilities)
    user, group = domain_xml.parse_owner(xml)
    return Access(user, group, tuple(root.absolute() for root in roots))


async def grant_layers(access: Access, disks: Iterable[Path]) -> dict[Path, list[Layer]]:
    """Let QEMU read what stands below these disks, and return it for each, from the top down."""

    def work() -> dict[Path, list[Layer]]:
        found = {}
        for disk in disks:
            access.open_way(disk.parent)
            below = disk_layers.find_layers(disk)[1:]
            for layer in below:
                access.grant(layer)
            found[disk] = [
                Layer(str(layer), disk_layers.format_of(layer), access.is_ours(layer)) for layer in below
            ]
        return found

    return await asyncio.to_thread(work)
