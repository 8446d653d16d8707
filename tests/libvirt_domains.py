"""Ordinary libvirt domains that boot our test image: nobody started them with cloning in mind.

    domain = make_domain(connection, image, folder, Shape(machine="pc", disk_format="raw", channels=()))

A domain has what libvirt gives to one that names no more (USB, a balloon), a disk whose guest is that of tests/machines.py,
and what its Shape says. It is defined, and runs under emulation. Its disks are files in the folder it was given; the private
libvirtd (tests/libvirtd.py) ends it with everything else.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from liveclone.engine.agent import Agent
from liveclone.formats import qcow2
from liveclone.host import unix_socket
from liveclone.model.image import Image

AGENT, EXEC = "org.liveclone.agent.0", "org.liveclone.exec.0"
STOCK = "org.qemu.guest_agent.0"
MORE_BYTES = 64 << 20  # of each disk but the first
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Shape:
    """What a domain has."""

    machine: str = "q35"  # "pc" is i440fx
    ram_mib: int = 256
    vcpus: int = 1
    disk_format: str = "qcow2"  # a layer above the image, or "raw": a copy of it
    disks: int = 1
    nics: int = 1
    network: str = ""  # the name of a libvirt network; QEMU's user network without one
    serial_controller: bool = True
    channels: tuple[str, ...] = (AGENT, EXEC)
    genid: bool = False
    console_log: str = ""  # a file that gets all that the serial console shows
    firmware: str = ""  # "efi": what libvirt chooses of those without Secure Boot, whose guests boot slower


def make_domain(
    connection: Any, image: Image, folder: Path, shape: Shape = Shape(), name: str = "web"
) -> Any:
    """Define and start a domain and return it (virDomain); its guest is not asked whether it is there.

    Args:
        connection: a virConnect.
        folder: for its disks.
    """
    disks = [folder / f"{name}-{number}.{shape.disk_format}" for number in range(shape.disks)]
    _make_first_disk(disks[0], image, shape.disk_format)
    for disk in disks[1:]:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", shape.disk_format, disk, str(MORE_BYTES)], check=True
        )
    domain = connection.defineXML(render_domain(name, image, disks, shape))
    domain.create()
    return domain


def render_domain(name: str, image: Image, disks: list[Path], shape: Shape) -> str:
    """Return the XML of a domain whose disks are there."""
    domain = ElementTree.Element("domain", type="qemu")
    _add(domain, "name", name)
    _add(domain, "memory", shape.ram_mib, unit="MiB")
    _add(domain, "vcpu", shape.vcpus)
    if shape.genid:
        _add(domain, "genid")
    system = _add(domain, "os", **({"firmware": shape.firmware} if shape.firmware else {}))
    if shape.firmware:
        _add(_add(system, "firmware"), "feature", name="secure-boot", enabled="no")
    _add(system, "type", "hvm", arch="x86_64", machine=shape.machine)
    _add(system, "kernel", image.boot.kernel)
    _add(system, "initrd", image.boot.initrd)
    _add(system, "cmdline", image.boot.cmdline)
    _add(_add(domain, "features"), "acpi")
    _add(domain, "cpu", mode="maximum")
    devices = _add(domain, "devices")
    for number, path in enumerate(disks):
        disk = _add(devices, "disk", type="file", device="disk")
        _add(disk, "driver", name="qemu", type=shape.disk_format)
        _add(disk, "source", file=str(path))
        _add(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")
    for _ in range(shape.nics):
        nic = _add(devices, "interface", type="network" if shape.network else "user")
        if shape.network:
            _add(nic, "source", network=shape.network)
        _add(nic, "model", type="virtio")
    if shape.serial_controller:
        _add(devices, "controller", type="virtio-serial")
    for channel in shape.channels:
        _add(_add(devices, "channel", type="unix"), "target", type="virtio", name=channel)
    serial = _add(devices, "serial", type="pty")
    if shape.console_log:
        _add(serial, "log", file=shape.console_log, append="on")
    _add(serial, "target", port="0")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    return ElementTree.tostring(domain, encoding="unicode")


def take_bootable_kernel(image: Image, folder: Path) -> Path:
    """Return the kernel of an image's guest as its distribution made it: ours has no header that UEFI firmware knows."""
    disk, kernel = folder / "look.raw", folder / "vmlinuz"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, disk], check=True)

    def look(request: str) -> str:
        return subprocess.run(
            ["debugfs", "-R", request, disk], check=True, capture_output=True, text=True
        ).stdout

    (name,) = re.findall(r"/(vmlinuz-[^/]+)/", look("ls -p /boot"))
    look(f"dump /boot/{name} {kernel}")
    disk.unlink()
    return kernel


def find_channel(domain: Any, name: str = AGENT) -> Path:
    """Return the socket of a channel of a running domain."""
    for channel in ElementTree.fromstring(domain.XMLDesc()).iter("channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is not None and source is not None and target.get("name") == name:
            return Path(source.attrib["path"])
    raise AssertionError(f"{domain.name()} has no channel {name}")


@asynccontextmanager
async def open_agent(domain: Any, channel: str = AGENT) -> AsyncIterator[Agent]:
    """Return the agent of a domain's guest, which may be booting still."""
    reader, writer = await unix_socket.open_connection(find_channel(domain, channel))
    try:
        yield Agent(domain.name(), reader, writer)
    finally:
        writer.close()


def wait_for_agent(domain: Any) -> None:
    """Wait until the guest's agent answers."""

    async def ask() -> None:
        async with open_agent(domain) as agent:
            await agent.call("ping", deadline_s=PATIENCE_S, repeat=True)

    asyncio.run(ask())
    deadline = time.monotonic() + PATIENCE_S
    while unconnected(domain):  # the agent opens its ports one after the other
        assert time.monotonic() < deadline, unconnected(domain)
        time.sleep(0.05)  # libvirt has an event for the stock agent's port only


def unconnected(domain: Any) -> list[str]:
    """Return the names of those of our agent's ports that nobody in the guest has open."""
    targets = ElementTree.fromstring(domain.XMLDesc()).iterfind("devices/channel/target")
    named = [(target.get("name", ""), target.get("state")) for target in targets]
    return [name for name, state in named if name.startswith("org.liveclone.") and state != "connected"]


def wait_for_stock_agent(uri: str, domain: Any) -> None:
    """Wait until the QEMU guest agent of a guest has opened its port; that libvirt has an event for."""
    import libvirt

    from liveclone.drivers.libvirt.link import open_link

    async def wait() -> None:
        link = await open_link(uri, domain.name())
        seen = link.connection.lookupByUUIDString(domain.UUIDString())
        connected = libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
        try:
            async with link.watch(seen, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE) as watch:
                if "state='connected'" not in seen.XMLDesc():
                    await watch.until(
                        lambda e: e.facts[0] == connected, "the QEMU guest agent's start", PATIENCE_S
                    )
        finally:
            await link.close()

    asyncio.run(wait())


def _make_first_disk(disk: Path, image: Image, disk_format: str) -> None:
    if disk_format == "qcow2":
        disk.write_bytes(qcow2.render_overlay(image.disk, "qcow2", image.disk_bytes))
    else:
        subprocess.run(["qemu-img", "convert", "-O", disk_format, image.disk, disk], check=True)


def _add(
    parent: ElementTree.Element, tag: str, text: object = None, **attributes: str
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = None if text is None else str(text)
    return element
