"""What libvirt's domain XML says of a machine, as values.

Three descriptions of one domain come here: the live one (`virsh dumpxml`), the definition (`--inactive`), and the one in a
save image. The live one has more in it: an id, aliases, the ports and paths that libvirt chose, backing chains.
What cannot be cloned is named by `domain_obstacles`; a clone's description is made by `domain_rewrite`; disks are understood
in `domain_disks`, network cards in `domain_nics`. Source: libvirt's formatdomain documentation, schema domaincommon.rng.
"""

from __future__ import annotations

import re
import uuid as uuids
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from . import domain_disks, domain_nics, plain_xml
from .domain_disks import DomainDisk as DomainDisk
from .domain_nics import DomainNic as DomainNic
from .plain_xml import attribute_of, bad_domain, need, text_of

_KIB = 1024
_UNITS: dict[str, int] = {
    "b": 1,
    "bytes": 1,
    **{letter: 1024 ** (n + 1) for n, letter in enumerate("kmgtpe")},
    **{f"{letter}ib": 1024 ** (n + 1) for n, letter in enumerate("kmgtpe")},
    **{f"{letter}b": 1000 ** (n + 1) for n, letter in enumerate("kmgtpe")},
}
_COUNT = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class DomainChannel:
    """A virtio-serial port of a name, such as "org.qemu.guest_agent.0".

    `kind` is where it leads ("unix", "spicevmc", ...); `path` the host's socket, empty where libvirt has yet to choose;
    `state` "connected" or "disconnected" if the guest's side is known, which it is while the domain runs; `alias` the
    name by which libvirt, or its owner, calls it.
    """

    name: str
    kind: str
    path: str
    state: str
    alias: str = ""


@dataclass(frozen=True)
class DomainConsole:
    """A serial port (`tag` "serial") or console ("console"): where its output goes, and the file of a log besides."""

    tag: str
    kind: str
    path: str
    log: str


@dataclass(frozen=True)
class Domain:
    """A machine as libvirt describes it.

    `id` is None unless it runs; `kind` "kvm" or "qemu" (emulated); `genid` empty where it has no VMGENID device, or is yet
    to get one; `ram_bytes` all memory at start, of which a balloon may have taken a part; `vcpus` those plugged;
    `firmware` "bios" or "efi", and `nvram` the file of its variables ("raw" or "qcow2"), where it has one; `cpu` for people.
    """

    name: str
    uuid: str
    id: int | None
    kind: str
    has_genid: bool
    genid: str
    ram_bytes: int
    vcpus: int
    arch: str
    machine_type: str
    cpu: str
    emulator: str
    firmware: str
    nvram: str
    nvram_format: str
    kernel: str
    initrd: str
    cmdline: str
    disks: tuple[DomainDisk, ...]
    nics: tuple[DomainNic, ...]
    channels: tuple[DomainChannel, ...]
    consoles: tuple[DomainConsole, ...]
    has_virtio_serial: bool

    def find_channel(self, name: str) -> DomainChannel | None:
        """Return the port of this name."""
        return next((channel for channel in self.channels if channel.name == name), None)


def parse_domain(xml: str) -> Domain:
    """Return what `xml` says of a domain.

    Raises:
        Corrupt: it is no domain's description, or lacks what every domain has ("bad-domain-xml").
    """
    root = load(xml)
    devices = root.find("devices")
    devices = Element("devices") if devices is None else devices
    channels = [c for c in devices.findall("channel") if attribute_of(c, "target", "type") == "virtio"]
    return Domain(
        name=need(text_of(root, "name"), "<name>"),
        uuid=_parse_uuid(text_of(root, "uuid"), "<uuid>"),
        id=_parse_count(root.get("id", ""), "its id") if root.get("id") else None,
        kind=need(root.get("type", ""), "type="),
        has_genid=root.find("genid") is not None,
        genid=_parse_uuid(text_of(root, "genid"), "<genid>") if text_of(root, "genid") else "",
        ram_bytes=_parse_memory(root.find("memory")),
        vcpus=_parse_count(attribute_of(root, "vcpu", "current") or text_of(root, "vcpu") or "1", "<vcpu>"),
        arch=need(attribute_of(root, "os/type", "arch"), "<type arch=> in <os>"),
        machine_type=attribute_of(root, "os/type", "machine"),
        cpu=" ".join(filter(None, (attribute_of(root, "cpu", "mode"), text_of(root, "cpu/model")))),
        emulator=text_of(devices, "emulator"),
        firmware="efi" if is_efi(root) else "bios",
        nvram=text_of(root, "os/nvram") or attribute_of(root, "os/nvram/source", "file"),
        nvram_format=attribute_of(root, "os/nvram", "format") or "raw",
        kernel=text_of(root, "os/kernel"),
        initrd=text_of(root, "os/initrd"),
        cmdline=text_of(root, "os/cmdline"),
        disks=_parse_disks(devices),
        nics=_parse_nics(devices),
        channels=tuple(_parse_channel(channel) for channel in channels),
        consoles=tuple(_parse_console(e) for e in devices if e.tag in ("serial", "console")),
        has_virtio_serial=bool(channels) or devices.find("controller[@type='virtio-serial']") is not None,
    )


def parse_owner(capabilities: str) -> tuple[int, int]:
    """Return user and group (numbers) of the QEMU processes, as `virsh capabilities` tells; 0, 0 where it does not.

    Raises:
        Corrupt: it is no such text ("bad-capabilities").
    """
    root = plain_xml.parse(capabilities, "capabilities", "bad-capabilities")
    for model in root.iterfind("host/secmodel"):
        label = text_of(model, "baselabel")
        if text_of(model, "model") == "dac" and re.fullmatch(r"\+\d+:\+\d+", label):
            user, _, group = label.partition(":")
            return int(user), int(group)
    return 0, 0


def load(xml: str) -> Element:
    """Return the <domain> element.

    Raises:
        Corrupt: it is none ("bad-domain-xml").
    """
    return plain_xml.parse(xml, "domain", "bad-domain-xml")


def is_efi(root: Element) -> bool:
    """Tell whether the domain has UEFI firmware, given or to be chosen by libvirt."""
    return (
        attribute_of(root, "os", "firmware") == "efi" or attribute_of(root, "os/loader", "type") == "pflash"
    )


def _parse_disks(devices: Element) -> tuple[DomainDisk, ...]:
    disks = tuple(domain_disks.parse_disk(disk) for disk in devices.findall("disk"))
    targets = [disk.target for disk in disks]
    for target in targets:
        if targets.count(target) > 1:
            raise bad_domain(f"two disks are {target}")
    return disks


def _parse_nics(devices: Element) -> tuple[DomainNic, ...]:
    nics = []
    for interface in devices.findall("interface"):
        need(attribute_of(interface, "mac", "address"), "<mac address=> of an interface")
        nics.append(domain_nics.parse_nic(interface))
    return tuple(nics)


def _parse_channel(channel: Element) -> DomainChannel:
    return DomainChannel(
        name=attribute_of(channel, "target", "name"),
        kind=channel.get("type", ""),
        path=attribute_of(channel, "source", "path"),
        state=attribute_of(channel, "target", "state"),
        alias=attribute_of(channel, "alias", "name"),
    )


def _parse_console(console: Element) -> DomainConsole:
    path, log = attribute_of(console, "source", "path"), attribute_of(console, "log", "file")
    return DomainConsole(console.tag, console.get("type", ""), path, log)


def _parse_memory(memory: Element | None) -> int:
    if memory is None:
        raise bad_domain("it has no <memory>")
    unit = memory.get("unit", "KiB")
    factor = _UNITS.get(unit.lower())
    if factor is None:
        raise bad_domain(f"<memory> is in {unit!r}")
    size = _parse_count((memory.text or "").strip(), "<memory>") * factor
    return -(-size // _KIB) * _KIB  # libvirt rounds up to KiB


def _parse_count(text: str, where: str) -> int:
    if not _COUNT.fullmatch(text):
        raise bad_domain(f"{where} is {text[:40]!r}, which is no number")
    return int(text)


def _parse_uuid(text: str, where: str) -> str:
    try:
        return str(uuids.UUID(need(text, where)))
    except ValueError as error:
        raise bad_domain(f"{where} is {text[:40]!r}, which is no UUID") from error
