"""Network cards of libvirt domains: taken out and put back as they were, and given to clones.

An <interface> says three things at once. The guest sees MAC, model, PCI address, boot ROM, queues and MTU: after a NIC was
unplugged for a snapshot, the same must come back. The administrator says where it leads, and what is allowed: that is
kept as well. And a live description says what libvirt made of it for as long as it is plugged: that goes, since libvirt
would take it for a wish, and the next one differs.

    <interface type='bridge'>                        type='network': libvirt shows what the network amounts to
      <mac address='52:54:00:12:34:56'/>             kept
      <source network='x' portgroup='p'              kept
              portid='..' bridge='virbr0'/>          goes
      <target dev='vnet3'/>                          goes; a name that somebody chose is kept
      <alias name='net0'/>                           goes; `ua-...` is kept
      <model type='virtio'/> <address .../> ...      kept

A clone's card differs from its source's in what may be there only once: see `nic_for_clone`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from . import plain_xml
from .domain_verdict import Obstacle
from .plain_xml import attribute_of, bad_domain

# virnetdevtap.h, virnetdevmacvlan.h: what libvirt names devices by itself, and clears in a definition.
_MADE_UP = re.compile(r"(vnet|macvtap|macvlan)[0-9]*")
_SOURCE_KEPT = ("network", "portgroup")
_PORT_KEPT = ("profileid", "managerid", "typeid", "typeidversion")  # the others name one port
_FILTER_ADDRESSES = ("IP", "IPV6", "MAC", "CTRL_IP_LEARNING_DONE")

_KNOWN = frozenset(
    [
        "network",
        "bridge",
        "direct",
        "user",
        "ethernet",
        "internal",
        "null",
        "udp",
        "mcast",
        "server",
        "client",
    ]
)
_PCI_ROOTS = ("pcie-root", "pcie-expander-bus")


@dataclass(frozen=True)
class DomainNic:
    """A network card.

    `id` ("nic-525400123456") is the same as long as the MAC is; `kind` is "network", "bridge", "user", ...; `source` the
    network's or bridge's name, empty where there is none; `alias` libvirt's name for it while the domain runs; `xml` the
    <interface> that gives the guest the same card at the same place.
    """

    id: str
    mac: str
    kind: str
    source: str
    model: str
    alias: str
    xml: str


def parse_nic(interface: Element) -> DomainNic:
    """Return what an <interface> element, which has a MAC, says."""
    clean = without_runtime(interface)
    source = clean.find("source")
    mac = attribute_of(clean, "mac", "address").lower()
    return DomainNic(
        id="nic-" + mac.replace(":", ""),
        mac=mac,
        kind=clean.get("type", ""),
        source=""
        if source is None
        else source.get("network") or source.get("bridge") or source.get("dev") or "",
        model=attribute_of(clean, "model", "type"),
        alias=attribute_of(interface, "alias", "name"),
        xml=plain_xml.render(clean),
    )


def without_runtime(interface: Element) -> Element:
    """Return a copy of an <interface> without what libvirt made up for the running one."""
    nic = copy.deepcopy(interface)
    source, target = nic.find("source"), nic.find("target")
    if source is not None and source.get("network"):
        nic.set("type", "network")
        for name in [name for name in source.attrib if name not in _SOURCE_KEPT]:
            del source.attrib[name]
    plain_xml.remove(nic, is_made_up_alias)
    if target is not None and _MADE_UP.fullmatch(target.get("dev", "")):
        del target.attrib["dev"]
        if not target.attrib:
            nic.remove(target)
    return nic


def nic_for_clone(nic_xml: str, mac: str) -> str:
    """Return the <interface> of a clone: the same card at the same place, with another MAC.

    Dropped is what can be there once: the host device's name, an Open vSwitch or 802.1Qbg port's id, addresses that a filter
    allows, a fixed address on either side, forwarded ports, log files. Kept: where it leads, VLAN, limits, filters. Of an
    <ip> that stands in a card of type "user" the guest's own little network is made, so it is kept there.

    Raises:
        Corrupt: `nic_xml` is no <interface> ("bad-interface-xml").
        Refused: `mac` cannot stand in XML ("bad-text").
    """
    nic = without_runtime(plain_xml.parse(nic_xml, "interface", "bad-interface-xml"))
    plain_xml.remove_all(
        nic, "mac", "target", "portForward", *([] if nic.get("type") == "user" else ["ip", "route"])
    )
    nic.insert(0, Element("mac", {"address": mac}))
    for source in nic.findall("source"):
        plain_xml.remove_all(source, "ip", "route")
    for backend in nic.findall("backend"):
        backend.attrib.pop("logFile", None)
    for parameters in nic.findall("virtualport/parameters"):
        for name in [name for name in parameters.attrib if name not in _PORT_KEPT]:
            del parameters.attrib[name]
    for port in nic.findall("virtualport"):
        plain_xml.remove(port, lambda child: child.tag == "parameters" and not child.attrib)
    for filters in nic.findall("filterref"):
        plain_xml.remove(filters, lambda child: child.get("name") in _FILTER_ADDRESSES)
    return plain_xml.render(nic)


def is_made_up_alias(element: Element) -> bool:
    """Tell whether this is an <alias> that libvirt gave; a user's begin with "ua-"."""
    return element.tag == "alias" and not element.get("name", "").startswith("ua-")


def find_nic_obstacles(nic: Element, root: Element, seen_macs: set[str]) -> Iterator[Obstacle]:
    """Yield what bars this <interface>: it is unplugged for a snapshot, and the same plugged again."""
    mac = attribute_of(nic, "mac", "address").lower()
    what, kind = f"interface {mac or '?'}", nic.get("type", "")
    if mac in seen_macs:
        yield Obstacle(what, "two interfaces have this MAC", "give one of them another MAC")
    seen_macs.add(mac)
    if kind not in _KNOWN:
        why = {
            "hostdev": "a device of the host has one owner, and its state cannot be saved",
            "vdpa": "a device of the host has one owner, and its state cannot be saved",
            "vhostuser": "its queues are served by a process outside QEMU, which knows one client",
        }.get(kind, "liveclone does not know such an interface")
        yield Obstacle(f"{what} (type {kind!r})", why, "use a bridge or a libvirt network")
        return
    address = nic.find("address")
    if address is None:
        return
    if address.get("type", "pci") != "pci":
        why = "it is no PCI card, so it cannot be unplugged for the snapshot"
        yield Obstacle(what, why, "use another model")
        return
    yield from _find_slot_obstacles(what, address, root)


def _find_slot_obstacles(what: str, address: Element, root: Element) -> Iterator[Obstacle]:
    """Yield what keeps a card from being unplugged where it is; libvirt and QEMU would refuse it in the midst."""
    place = _parse_slot(address)
    neighbours = [
        other for other in root.iterfind("devices/*/address[@type='pci']") if _parse_slot(other) == place
    ]
    if len(neighbours) > 1:
        why = "it shares its PCI slot with another device, and a slot is unplugged as a whole"
        yield Obstacle(
            what, why, "take its <address> out with virsh edit: libvirt puts it on a slot of its own"
        )
    for controller in root.iterfind("devices/controller[@type='pci']"):
        if _parse_number(controller.get("index", "-1")) != place[1]:
            continue
        model = controller.get("model")
        if model in _PCI_ROOTS:
            why = "it sits on the PCIe root bus, where nothing can be unplugged"
            yield Obstacle(
                what, why, "take its <address> out with virsh edit: libvirt puts it on a root port"
            )
        elif attribute_of(controller, "target", "hotplug") == "off":
            why = f"hotplug is off on PCI controller {place[1]}"
            yield Obstacle(what, why, "take hotplug='off' out with virsh edit")
        elif model == "pci-root" and root.find("features/acpi") is None:
            why = "without ACPI nothing can be unplugged from an i440fx machine"
            yield Obstacle(what, why, "put <acpi/> into <features> with virsh edit")


def _parse_slot(address: Element) -> tuple[int, int, int]:
    domain, bus, slot = (_parse_number(address.get(name, "0")) for name in ("domain", "bus", "slot"))
    return domain, bus, slot


def _parse_number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise bad_domain(f"a PCI address has {text[:40]!r} in it") from error
