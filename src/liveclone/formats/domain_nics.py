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
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from . import plain_xml
from .plain_xml import attribute_of

# virnetdevtap.h, virnetdevmacvlan.h: what libvirt names devices by itself, and clears in a definition.
_MADE_UP = re.compile(r"(vnet|macvtap|macvlan)[0-9]*")
_SOURCE_KEPT = ("network", "portgroup")
_PORT_KEPT = ("profileid", "managerid", "typeid", "typeidversion")  # the others name one port
_FILTER_ADDRESSES = ("IP", "IPV6", "MAC", "CTRL_IP_LEARNING_DONE")


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
