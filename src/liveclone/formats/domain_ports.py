"""Where the ports and screens of a clone lead: not to what its source's have.

A port (serial, parallel, console, channel) has two ends. The guest's stays as it is. The host's, in the source, is a
terminal that the kernel numbered, a socket, a file: the clone gets another of its kind, or a terminal, on which
`virsh console` works. What else it may be (SPICE, nothing) is made by QEMU itself for each machine, and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from .plain_xml import attribute_of, remove_all

_PORTS = ("serial", "parallel", "console", "channel")


def set_ports(devices: Element, sockets: Mapping[str, str], console_log: str) -> None:
    """Lead all ports of <devices> to places of the clone's own.

    A virtio-serial port gets the socket under its name, or one that libvirt chooses. The first serial port writes to
    `console_log`, if there is one, behind what is in it; so does the first console where it is that port, which libvirt
    shows twice.
    """
    first = {id(port) for port in _find_first(devices)}
    for port in [device for device in devices if device.tag in _PORTS]:
        log = console_log if id(port) in first else ""
        remove_all(port, "log")
        port.attrib.pop("tty", None)
        for target in port.findall("target"):
            target.attrib.pop("state", None)
        kind = port.get("type")
        socket = sockets.get(attribute_of(port, "target", "name"), "") if port.tag == "channel" else ""
        if socket or (port.tag == "channel" and kind == "unix"):
            _set_source(port, "unix", mode="bind", path=socket)
            continue
        if kind == "file" and log:
            _set_source(port, "file", path=log, append="on")
        elif kind in ("pty", "file", "unix"):
            _set_source(port, "pty")
        if log and port.get("type") != "file":
            place = 1 if port.find("source") is not None else 0
            port.insert(place, Element("log", {"file": log, "append": "on"}))


def free_graphics(devices: Element) -> None:
    """Have libvirt choose the ports and sockets of the clone's screens; addresses and passwords stay."""
    for graphics in devices.findall("graphics"):
        if graphics.get("type") not in ("vnc", "spice"):
            continue
        for name in ("port", "tlsPort", "socket"):
            graphics.attrib.pop(name, None)
        if graphics.get("type") == "vnc":
            graphics.attrib = {"type": "vnc", "port": "-1"} | graphics.attrib  # as libvirt writes it
        graphics.set("autoport", "yes")
        if "websocket" in graphics.attrib:
            graphics.set("websocket", "-1")
        for listen in graphics.findall("listen"):
            if listen.get("type") == "socket":
                listen.attrib.pop("socket", None)
            if listen.get("type") == "network":
                listen.attrib.pop("address", None)  # where that network is just now


def _find_first(devices: Element) -> list[Element]:
    serials = devices.findall("serial")
    if not serials:
        return devices.findall("console")[:1]
    port = attribute_of(serials[0], "target", "port")
    shown = [
        console
        for console in devices.findall("console")
        if attribute_of(console, "target", "type") in ("", "serial")
        and attribute_of(console, "target", "port") == port
    ]
    return [serials[0], *shown[:1]]


def _set_source(port: Element, kind: str, **attributes: str) -> None:
    """Give a port this source, or none if it has no path."""
    remove_all(port, "source", "protocol")
    port.set("type", kind)
    if attributes.get("path"):
        port.insert(0, Element("source", attributes))
