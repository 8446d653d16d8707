"""Ports for liveclone's agent in a domain that has none: plugged while it runs, and taken away again.

    <controller type='virtio-serial'>   where the domain has none     alias ua-liveclone-serial
    <channel> org.liveclone.agent.0     a socket of libvirt's choice  alias ua-liveclone-agent
    <channel> org.liveclone.exec.0                                    alias ua-liveclone-exec

What is ours is known by its alias, in the running domain as in its definition, so nothing has to be remembered elsewhere,
and clones, whose description is their source's, have it too. What has another alias is the owner's and stays.

libvirt plugs a virtio-serial controller into a running domain, and unplugs none (seen with 11.3). So one that was plugged
stays, empty, until the domain is shut down; only its definition is without it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import libvirt

from ...errors import HypervisorError, Refused, Unsupported
from ...formats.domain_xml import Domain, parse_domain
from ...model.agent import GuestPort
from ..base import AGENT_PORTS
from .ports import channel_of

if TYPE_CHECKING:
    from .connection import Connection

LIVE: int = libvirt.VIR_DOMAIN_AFFECT_LIVE
CONFIG: int = libvirt.VIR_DOMAIN_AFFECT_CONFIG
ALIAS = "ua-liveclone-"  # libvirt leaves an alias alone that begins with "ua-"
CONTROLLER = ALIAS + "serial"
UNPLUG_DEADLINE_S = 20.0

_REMOVED: int = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED


async def list_ports(connection: Connection) -> tuple[GuestPort, ...]:
    """Return those of the agent's ports that the domain has, live or in its definition."""
    live, kept = await connection.read(), await _definition(connection)
    found = []
    for name in AGENT_PORTS:
        here = live.find_channel(channel_of(name))
        there = kept.find_channel(channel_of(name)) if kept else None
        if here or there:
            added = any(one is not None and one.alias == ALIAS + name for one in (here, there))
            found.append(GuestPort(name=name, live=bool(here), persistent=bool(there), added=added))
    return tuple(found)


async def add(connection: Connection, *, persistent: bool) -> None:
    """Plug the ports that are missing, and a controller where there is none; on failure at most that is left.

    Args:
        persistent: into the definition too, so that a cold start has them again.

    Raises:
        Unsupported: the machine has no room for a controller (code "no-serial-controller").
        Refused: `persistent`, and the domain has no definition (code "transient-domain").
    """
    kept = await _definition(connection)
    if persistent and kept is None:
        raise Refused(
            f"{connection.name} is a transient domain: there is no definition to put ports into",
            code="transient-domain",
            tried="plugging the agent's ports",
            on=connection.name,
            source_state="running, not touched",
            next_step=f"liveclone agent install {connection.name}, without --persistent",
        )
    async with AsyncExitStack() as undo:
        places = [(await connection.read(), LIVE), *([(kept, CONFIG)] if persistent and kept else [])]
        for domain, affects in places:
            for alias, xml in _missing(domain):
                await _attach(connection, alias, xml, affects)
                if (alias, affects) != (CONTROLLER, LIVE):
                    undo.push_async_callback(_detach, connection, alias, affects)
        undo.pop_all()


async def remove(connection: Connection) -> None:
    """Take away what `add` has plugged, from the running domain and from its definition."""
    ours = [ALIAS + name for name in AGENT_PORTS]
    places = [(LIVE, 0, ours)]
    if await connection.call("looking at the domain", connection.domain.isPersistent):
        places.append((CONFIG, libvirt.VIR_DOMAIN_XML_INACTIVE, [*ours, CONTROLLER]))
    for affects, flags, aliases in places:
        xml = await connection.call("reading the domain", connection.domain.XMLDesc, flags)
        for alias in aliases:
            if f"<alias name='{alias}'/>" in xml:
                await _detach(connection, alias, affects)


def _missing(domain: Domain) -> Iterator[tuple[str, str]]:
    names = [name for name in AGENT_PORTS if domain.find_channel(channel_of(name)) is None]
    if names and not domain.has_virtio_serial:
        yield CONTROLLER, f"<controller type='virtio-serial'><alias name='{CONTROLLER}'/></controller>"
    for name in names:
        yield (
            ALIAS + name,
            f"<channel type='unix'><target type='virtio' name={quoteattr(channel_of(name))}/>"
            f"<alias name='{ALIAS + name}'/></channel>",
        )


async def _attach(connection: Connection, alias: str, xml: str, affects: int) -> None:
    try:
        await connection.call("plugging a port", connection.domain.attachDeviceFlags, xml, affects)
    except HypervisorError as error:
        if alias != CONTROLLER:
            raise
        raise Unsupported(
            f"{connection.name} has no virtio-serial controller, and cannot be given one while it runs",
            code="no-serial-controller",
            tried="plugging a virtio-serial controller",
            on=connection.name,
            seen=error.seen,
            source_state="running, not touched",
            next_step="virsh edit: add <controller type='virtio-serial'/>, then shut it down and start it",
        ) from error


async def _detach(connection: Connection, alias: str, affects: int) -> None:
    if affects == CONFIG:
        await connection.call("removing a port", connection.domain.detachDeviceAlias, alias, affects)
        return
    async with connection.link.watch(connection.domain, _REMOVED) as watch:
        await connection.call("unplugging a port", connection.domain.detachDeviceAlias, alias, affects)
        await watch.until(lambda event: event.facts[0] == alias, f"unplugging {alias}", UNPLUG_DEADLINE_S)


async def _definition(connection: Connection) -> Domain | None:
    """Return what the domain would start from; None for one that is transient."""
    if not await connection.call("looking at the domain", connection.domain.isPersistent):
        return None
    inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
    return parse_domain(await connection.call("reading its definition", connection.domain.XMLDesc, inactive))
