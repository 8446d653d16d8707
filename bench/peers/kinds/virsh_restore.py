"""`virsh restore` of a copy of a save image, as an administrator makes domains of one who is warm, without liveclone.

    virsh snapshot-create-as --memspec --live ──> the save image, and the disk frozen
    a copy:  the image copied, name, UUID and disk in its header another's ── virsh restore ── a port of its user network

The copying of the image is in the time; it is on tmpfs, where it is fastest. A copy takes itself for its source in all but
libvirt's name for it, which is why each has a user network to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from xml.etree import ElementTree

from liveclone.drivers.libvirt import split
from liveclone.formats import libvirt_save
from liveclone.host import command, links
from liveclone.units import MIB
from tests.libvirt_domains import AGENT, EXEC, Shape, find_channel, make_domain

from ... import domains
from ...lab import Lab
from ...private import private_ram_bytes
from .. import app, guest, qemu, room
from ..base import HTTP, Copy, Expected, Peer, Reached, State
from .liveclone import find_qemu

if TYPE_CHECKING:
    from liveclone.drivers.libvirt.link import Watch

SOURCE = "source"
DEADLINE_S = 300.0
_ports = itertools.count(30000)


class VirshRestore(Peer):
    name = "virsh-restore"
    words = "a libvirt domain's save image, copied, virsh restore"
    order = 30

    async def find_obstacle(self, lab: Lab) -> str:
        return domains.find_obstacle()

    async def find_version(self, lab: Lab) -> str:
        libvirt = await command.run(["virsh", "--version"], deadline_s=DEADLINE_S)
        return f"libvirt {libvirt.strip()}, {await find_qemu(lab)}"

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        room.need(lab, ram_mib * MIB, ram_mib * MIB, "a domain and its save image")
        namespace = lab.ctx.layout.namespace
        links.ensure_network(lab.ctx.network_spec())
        with qemu.open_folders(lab, self.name) as (folder, hot):
            async with domains.open_daemon(folder, hot, namespace) as (uri, connection):
                host = Host(lab, uri, connection, namespace, ram_mib, folder, hot)
                shape = Shape(ram_mib=ram_mib)
                image = lab.ctx.images.load(app.IMAGE.name)
                domain = await asyncio.to_thread(make_domain, connection, image, folder, shape, SOURCE)
                try:
                    yield await _make_state(host, domain)
                finally:
                    await asyncio.to_thread(domain.destroy)
                    await asyncio.to_thread(domain.undefine)


class Host:
    """A libvirtd, and where its files are."""

    def __init__(
        self,
        lab: Lab,
        uri: str,
        connection: Any,
        namespace: str,
        ram_mib: int,
        folder: Path,
        hot: Path,
    ) -> None:
        self.lab, self.uri, self.connection, self.namespace = lab, uri, connection, namespace
        self.ram_mib, self.folder, self.hot = ram_mib, folder, hot

    async def virsh(self, *words: str) -> str:
        return await command.run(["virsh", "--connect", self.uri, *words], deadline_s=DEADLINE_S)

    async def publish(self, name: str) -> Copy:
        """Give the application of a running domain a port of the namespace."""
        port = next(_ports)
        forward = f"hostfwd_add hostnet0 tcp:127.0.0.1:{port}-{guest.ADDRESS}:{HTTP}"
        await self.virsh("qemu-monitor-command", name, "--hmp", forward)
        return Copy(name, self.namespace, "127.0.0.1", (domains.find_pid(name),), port)


class Saved(State):
    """A save image, and the frozen disk."""

    def __init__(self, host: Host, image: Path, disk: Path) -> None:
        self.host, self.image, self.disk = host, image, disk
        self.names: list[str] = []

    async def start(self, count: int, reached: Reached) -> None:
        size = self.image.stat().st_size
        room.need(self.host.lab, count * size, count * size, f"{count} copies of the save image, and domains")

        async def restore() -> None:
            name = f"copy-{uuid4().hex[:8]}"
            self.names.append(name)
            image = await asyncio.to_thread(self._copy, name)
            await self.host.virsh("restore", str(image), "--running")
            image.unlink()
            reached(await self.host.publish(name))

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(restore())

    def _copy(self, name: str) -> Path:
        """Make the save image of another domain of this one."""
        image, drive = self.host.hot / f"{name}.save", self.host.folder / f"{name}.qcow2"
        qemu.make_overlay(self.host.lab, drive, self.disk)
        shutil.copyfile(self.image, image)
        header = split.read_header(image)
        changed = libvirt_save.render_header(replace(header, xml=rename(header.xml, name, drive)))
        assert len(changed) == header.stream_offset, "libvirt has left too little room for a longer name"
        with image.open("r+b") as file:
            file.write(changed)
        return image

    async def end(self) -> None:
        running = await asyncio.to_thread(self.host.connection.listAllDomains)
        for domain in running:
            if domain.name() in self.names:
                await asyncio.to_thread(domain.destroy)
        for name in self.names:
            (self.host.hot / f"{name}.save").unlink(missing_ok=True)
            (self.host.folder / f"{name}.qcow2").unlink(missing_ok=True)
        self.names.clear()


def rename(xml: str, name: str, drive: Path) -> str:
    """Return a saved domain's description with what libvirt lets no two domains share."""
    root = ElementTree.fromstring(xml)
    for tag, text in (("name", name), ("uuid", str(uuid4()))):
        found = root.find(tag)
        assert found is not None, tag
        found.text = text
    disk = root.find("devices/disk")
    assert disk is not None
    for old in disk.findall("source") + disk.findall("backingStore"):
        disk.remove(old)
    ElementTree.SubElement(disk, "source", file=str(drive))
    for channel in root.iterfind("devices/channel"):
        for source in channel.findall("source"):
            channel.remove(source)  # a socket: libvirt chooses another
    return ElementTree.tostring(root, encoding="unicode")


async def _make_state(host: Host, domain: Any) -> State:
    copy = await host.publish(SOURCE)
    mac = ElementTree.fromstring(domain.XMLDesc()).find("devices/interface/mac")
    assert mac is not None
    ports = find_channel(domain, AGENT), find_channel(domain, EXEC)
    expected: Expected = await guest.make_ready(*ports, copy, mac.attrib["address"])
    state = Saved(host, host.hot / "source.save", host.folder / f"{SOURCE}-0.qcow2")
    state.expected = expected
    state.touched_mib = private_ram_bytes(copy.pids[0], host.ram_mib * MIB) / MIB
    state.make_s, state.pause_ms = await _save(host, state.image)
    return state


async def _save(host: Host, image: Path) -> tuple[float, float]:
    """Take a live snapshot, and return the time for it, in seconds, and the pause, in milliseconds."""
    import libvirt

    from liveclone.drivers.libvirt.link import open_link

    link = await open_link(host.uri, SOURCE)
    try:
        domain = await link.call("finding it", link.connection.lookupByName, SOURCE)
        async with link.watch(domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE) as watch:
            began = time.monotonic()
            await host.virsh(
                *("snapshot-create-as", SOURCE, "--memspec", f"{image},snapshot=external"),
                *("--diskspec", f"vda,snapshot=external,file={host.folder / 'next.qcow2'}"),
                *("--live", "--atomic", "--no-metadata"),
            )
            make_s = time.monotonic() - began
            suspended = await _find(watch, libvirt.VIR_DOMAIN_EVENT_SUSPENDED)
            resumed = await _find(watch, libvirt.VIR_DOMAIN_EVENT_RESUMED)
            return make_s, (resumed - suspended) * 1e3
    finally:
        await link.close()


async def _find(watch: Watch, what: int) -> float:
    event = await watch.until(lambda event: event.facts[0] == what, "the snapshot's pause", DEADLINE_S)
    return event.at


PEER = VirshRestore
