"""What a domain is that others made: its hardware, disks and NICs, and what of it cannot be cloned. Nothing is changed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import libvirt

from ...errors import NotFound
from ...formats import domain_obstacles, domain_xml
from ...model.disk import Disk
from ...model.machine import Boot
from ...model.network import NetworkKind, Nic
from ..base import Adoption
from . import hardware, nics, registry
from .link import Link
from .registry import DomainRef


async def find(link: Link, text: str) -> DomainRef:
    """Return the domain that has this name or UUID.

    Raises:
        NotFound: there is none (code "no-domain").
    """
    for lookup in (link.connection.lookupByName, link.connection.lookupByUUIDString):
        try:
            domain = await asyncio.to_thread(lookup, text)
        except libvirt.libvirtError:
            continue
        return DomainRef(uri=link.uri, uuid=domain.UUIDString(), name=domain.name(), adopted=True)
    raise NotFound(
        f"libvirt has no domain {text!r}",
        code="no-domain",
        tried="finding a domain",
        on=text,
        seen=link.uri or "libvirt's default URI",
        next_step="virsh list --all",
    )


async def look(link: Link, ref: DomainRef) -> Adoption:
    """Return how the domain is now, running or not.

    Raises:
        NotFound: it is not here, as `registry.find` and `registry.check_here` tell.
    """
    domain = await registry.find(link, ref)
    xml = await link.call("reading the domain", domain.XMLDesc, libvirt.VIR_DOMAIN_XML_SECURE)
    versions = await link.call("asking for its version", hardware.versions, link.connection)
    found = domain_xml.parse_domain(xml)
    running = await link.call(
        "looking at the domain", domain.isActive
    )  # or a QEMU of its UUID is another libvirt's
    if not running:
        await registry.check_here(link, ref, domain)
    sizes = await asyncio.to_thread(lambda: {disk.target: _size(domain, disk) for disk in _written(found)})
    return Adoption(
        uuid=ref.uuid,
        name=found.name,
        hardware=hardware.of(found, versions),
        boot=Boot(kernel=found.kernel, initrd=found.initrd, cmdline=found.cmdline),
        disks=tuple(
            Disk(target=disk.target, path=disk.path, format=disk.format, size_bytes=sizes[disk.target])
            for disk in _written(found)
        ),
        nics=tuple(
            Nic(id=nics.id_of(nic), kind=NetworkKind.LIBVIRT, mac=nic.mac, address="") for nic in found.nics
        ),
        process=registry.find_process(ref.uuid) if running else None,
        obstacles=tuple(
            f"{one.what}: {one.why} ({one.next_step})" for one in domain_obstacles.find_obstacles(xml)
        ),
    )


def _written(domain: domain_xml.Domain) -> list[domain_xml.DomainDisk]:
    return [disk for disk in domain.disks if disk.device == "disk" and not disk.readonly and disk.path]


def _size(domain: libvirt.virDomain, disk: domain_xml.DomainDisk) -> int:
    try:
        return int(domain.blockInfo(disk.target)[0])
    except libvirt.libvirtError:  # it does not run, and its disk is not where it should be
        return os.stat(disk.path).st_size if Path(disk.path).exists() else 0
