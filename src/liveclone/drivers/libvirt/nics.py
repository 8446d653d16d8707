"""The NICs of a domain, in libvirt's words.

A NIC that was unplugged for a moment comes back as it was: same MAC, same PCI address, same network, from what `unplug`
kept. A clone's NIC is the source's with another MAC. Any other is a virtio card on libvirt's `default`
network, or on QEMU's own.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import libvirt
import libvirt_qemu

from ...errors import LivecloneError, Unsupported
from ...formats import domain_new, domain_nics, domain_xml
from ...model.network import NetworkKind, Nic, Port
from . import registry

if TYPE_CHECKING:
    from .connection import Connection

ALIAS = "ua-"  # libvirt leaves an alias alone that begins so


def id_of(nic: domain_xml.DomainNic) -> str:
    """Return the id of a NIC: the alias that we, or its owner, gave it; else its MAC tells it apart."""
    return nic.alias.removeprefix(ALIAS) if nic.alias.startswith(ALIAS) else nic.id


def render(folder: Path, nic: Nic, ports: tuple[Port, ...], tap_fd: int | None) -> str:
    """Return the <interface> to attach.

    Raises:
        Unsupported: libvirt cannot connect a NIC so: published ports ("no-ports"), our own bridge ("no-tap").
    """
    if ports:
        raise Unsupported(
            "libvirt publishes no ports of a machine",
            code="no-ports",
            tried="plugging a NIC",
            on=nic.id,
            seen=", ".join(f"{port.host_port}:{port.guest_port}" for port in ports),
            next_step="leave the ports out, and reach the guest by its address",
        )
    if tap_fd is not None or nic.kind is NetworkKind.BRIDGE:
        raise Unsupported(
            "libvirt cannot connect a machine to liveclone's own bridge",
            code="no-tap",
            tried="plugging a NIC",
            on=nic.id,
            next_step="choose --network libvirt, user or none",
        )
    kept = registry.read_nic(folder, nic.id)
    if kept and nic.mac in kept:
        return kept
    if kept:
        return domain_new.with_alias(domain_nics.nic_for_clone(kept, nic.mac), ALIAS + nic.id)
    if nic.kind is NetworkKind.LIBVIRT:
        where = "type='network'><source network='default'/>"
    else:
        where = "type='user'>"
    return (
        f"<interface {where}<mac address={quoteattr(nic.mac)}/><model type='virtio'/>"
        f"<alias name={quoteattr(ALIAS + nic.id)}/></interface>"
    )


async def macs_in_use(connection: Connection) -> tuple[str, ...]:
    """Return the MAC that each NIC uses, as QEMU sees it: the guest may have set another than it was given."""
    answer = await connection.call(
        "looking at its NICs",
        libvirt_qemu.qemuMonitorCommand,
        connection.domain,
        json.dumps({"execute": "query-rx-filter"}),
        0,
    )
    found: dict[str, str] = {one["name"]: one["main-mac"] for one in json.loads(answer)["return"]}
    # Only virtio tells of its filter; of other models there is what libvirt gave them.
    return tuple(found.get(nic.alias, nic.mac) for nic in (await connection.read()).nics)


async def forget(connection: Connection, mac: str) -> None:
    """Take a NIC out of the definition, from which the domain would start next."""
    with contextlib.suppress(LivecloneError):
        inactive = await connection.call(
            "reading its definition", connection.domain.XMLDesc, libvirt.VIR_DOMAIN_XML_INACTIVE
        )
        for nic in domain_xml.parse_domain(inactive).nics:
            if nic.mac == mac:
                await connection.call(
                    "changing its definition",
                    connection.domain.detachDeviceFlags,
                    nic.xml,
                    libvirt.VIR_DOMAIN_AFFECT_CONFIG,
                )
