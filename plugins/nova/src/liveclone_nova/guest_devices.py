"""What every guest of this driver has, so that a copy of it can become a machine of its own.

    <genid/>                           VMGENID: the guest's kernel sees for itself that it is a copy, and takes new entropy
    <channel> org.liveclone.agent.0    the port of liveclone's agent; where its socket is, libvirt chooses

A guest without an agent has no use for the port, and no harm of it. What is not cloned in any case (docs/libvirt.md: other
than x86) is left as Nova describes it. Guests from before the plugin get both when Nova describes them anew (a hard reboot).
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, SubElement

from liveclone.formats import domain_new, domain_xml, plain_xml

PORT = domain_new.CHANNELS[0]  # the other one is for commands of the host, which Nova has none of
_KINDS = ("kvm", "qemu")
_ARCHITECTURES = ("x86_64", "i686")


def add(novas: str, connection: Any) -> tuple[str, tuple[str, ...]]:
    """Return Nova's description of a guest with both in it, and what it cannot have, a few words each.

    Args:
        connection: libvirt's (virConnect), which is asked what its QEMU offers.
    """
    root = domain_xml.load(novas)
    kind, arch = root.get("type", ""), plain_xml.attribute_of(root, "os/type", "arch")
    if kind not in _KINDS or arch not in _ARCHITECTURES:
        return novas, (
            f"VMGENID and the agent's port (it is a {kind} guest, {arch or 'of no architecture'})",
        )
    missing = []
    if _offers_vmgenid(root, connection):
        root.insert(0, Element("genid"))
    else:
        missing.append("VMGENID (its QEMU has none)")
    devices = root.find("devices")
    channel = SubElement(root if devices is None else devices, "channel", type="unix")
    SubElement(channel, "target", type="virtio", name=PORT)
    return plain_xml.render(root), tuple(missing)


def _offers_vmgenid(root: Element, connection: Any) -> bool:
    """Ask libvirt, which has looked at each QEMU once: a domain with a device that QEMU lacks would not start."""
    asked = (
        plain_xml.text_of(root, "devices/emulator") or None,
        plain_xml.attribute_of(root, "os/type", "arch"),
        plain_xml.attribute_of(root, "os/type", "machine") or None,
        root.get("type"),
    )
    shown = plain_xml.parse(
        connection.getDomainCapabilities(*asked, 0), "domainCapabilities", "bad-capabilities"
    )
    return plain_xml.attribute_of(shown, "features/genid", "supported") == "yes"
