"""The XML of a domain that liveclone itself starts from an image: the same machine that its QEMU driver starts.

What is not named here libvirt adds (controllers, addresses), and says so in the XML that it gives back; a snapshot's
clones are made of that, not of this.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence

from ..model.machine import Acceleration, Boot, Hardware
from .domain_disks import Layer, add_layers

CHANNELS = ("org.liveclone.agent.0", "org.liveclone.exec.0")
_ROOT_PORTS = 8  # for its own three devices, and NICs that are plugged while it runs


def render_domain(
    *,
    name: str,
    uuid: str,
    genid: str,
    hardware: Hardware,
    boot: Boot,
    disk: str,
    layers: Sequence[Layer],
    console_log: str,
) -> str:
    """Return the definition of a new domain; `genid` empty: without VMGENID; `layers`: what the disk stands on."""
    kvm = hardware.acceleration is Acceleration.KVM
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _text(domain, "name", name)
    _text(domain, "uuid", uuid)
    if genid:
        _text(domain, "genid", genid)
    _text(domain, "memory", str(hardware.ram_bytes), unit="b")
    _text(domain, "vcpu", str(hardware.vcpus))
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=hardware.machine_type or "q35")
    for tag, value in (("kernel", boot.kernel), ("initrd", boot.initrd), ("cmdline", boot.cmdline)):
        if value:
            _text(system, tag, value)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if kvm:
        ET.SubElement(domain, "cpu", mode="host-passthrough", migratable="on")
    else:
        ET.SubElement(domain, "cpu", mode="maximum")
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_crash", "destroy")
    devices = ET.SubElement(domain, "devices")
    _add_disk(devices, disk, layers)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for index in range(1, _ROOT_PORTS + 1):
        ET.SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
    ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    for channel in CHANNELS:
        unix = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(unix, "target", type="virtio", name=channel)
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=console_log, append="on")
    ET.SubElement(devices, "memballoon", model="none")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    return ET.tostring(domain, encoding="unicode")


def add_nics(xml: str, nics: Iterable[str]) -> str:
    """Return a domain's XML with these <interface> elements too."""
    domain = ET.fromstring(xml)
    devices = domain.find("devices")
    assert devices is not None
    devices.extend(ET.fromstring(nic) for nic in nics)
    return ET.tostring(domain, encoding="unicode")


def with_alias(nic: str, alias: str) -> str:
    """Return an <interface> element that libvirt will know by this alias."""
    element = ET.fromstring(nic)
    for old in element.findall("alias"):
        element.remove(old)
    ET.SubElement(element, "alias", name=alias)
    return ET.tostring(element, encoding="unicode")


def _add_disk(devices: ET.Element, path: str, layers: Sequence[Layer]) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", discard="unmap", detect_zeroes="unmap")
    ET.SubElement(disk, "source", file=path)
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    _text(disk, "serial", "liveclone-disk")
    add_layers(disk, layers)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


__all__: Sequence[str] = ("CHANNELS", "add_nics", "render_domain", "with_alias")
