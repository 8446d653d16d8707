"""The description of a clone, made from that of its source.

Two are made. The one for the *save image*, which libvirt starts QEMU by, must describe to the guest the very machine
that its memory knows: every device at its address, CPU, clock, controllers. The *definition*, which it starts by after
the clone was shut down, is the source's own with the network cards that the clone was given. In both, what can be there
only once is the clone's:

    name, uuid, genid, SMBIOS uuid           from the spec; <hwuuid> goes, title and description too
    metadata                                 libosinfo's kept (which system it is); others recognise *their* machine by it
    disks, firmware variables                from the spec; what stood below a disk goes
    interfaces                               none in the save image; in the definition those that are given
    channels, ports, consoles                sockets from the spec or libvirt's choice; files become a terminal (pty)
    logs                                     go, or `console_log`
    VNC, SPICE                               ports by libvirt; where they listen, passwords and so on stay
    vsock                                    CID by libvirt
    security labels                          those libvirt made up go; fixed ones stay
    memoryBacking                            `private_memory`: the file that the hook puts in place, mapped private

All else stays as it is. Both are the same when made twice. What cannot be cloned is told by `domain_obstacles`, not here;
what would make two machines write one file is refused here too.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement

from ..errors import Refused
from . import domain_disks, domain_ports, domain_xml, plain_xml
from .domain_nics import is_made_up_alias
from .domain_nics import nic_for_clone as nic_for_clone
from .plain_xml import attribute_of, namespace_of, remove, remove_all

_LIBOSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
_RUNTIME_OF_DISK = ("backingStore", "mirror", "transient", "encryption", "auth")


@dataclass(frozen=True)
class CloneSpec:
    """What is the clone's own.

    Attributes:
        disks: path and format by target ("vda"), for every disk that the guest can write; drives and read-only disks that
            are not named keep the source's.
        layers: by target, what stands below such a disk; not named: libvirt looks for itself.
        genid: a new UUID where the source has a VMGENID device, else empty. libvirt 11.3 makes another of its own when it
            restores (seen): what the guest has is in the clone's live description.
        channels: sockets by the names of virtio-serial ports; "", or not named: libvirt chooses.
        console_log: a file for what the first serial port (or console) writes, or empty.
        nvram: the clone's own file of firmware variables; empty where the source has none.
        private_memory: its memory comes from the image that the hook links in.
        metadata: an element of the caller's own namespace for <metadata>, as XML, or empty.
    """

    name: str
    uuid: str
    disks: Mapping[str, tuple[str, str]]
    layers: Mapping[str, Sequence[domain_disks.Layer]] = field(default_factory=dict)
    genid: str = ""
    channels: Mapping[str, str] = field(default_factory=dict)
    console_log: str = ""
    nvram: str = ""
    private_memory: bool = False
    metadata: str = ""


def rewrite_saved(xml: str, spec: CloneSpec) -> str:
    """Return the XML of a clone's save image, made from that of the source's save image.

    Raises:
        Corrupt: `xml` is no domain's description ("bad-domain-xml").
        Refused: spec and domain do not fit: something that must be the clone's own is not named ("not-own"), something
            named is not there ("unknown-part"), a text is none for XML ("bad-text"), or `private_memory` cannot be had
            ("memory-backing").
    """
    root = domain_xml.load(xml)
    _refuse_unknown(root, spec)
    _rewrite(root, spec)
    if spec.private_memory:
        _set_private_memory(root)
    return plain_xml.render(root)


def render_definition(xml: str, spec: CloneSpec, nics: Sequence[str] = ()) -> str:
    """Return a clone's definition, made from the source's (`virsh dumpxml --inactive`), with these <interface> elements.

    From a transient domain, which has no definition, it can be made of the saved or live description. What the spec names
    and the definition lacks (a disk that was plugged just for now) is passed over; `private_memory` is not looked at.

    Raises:
        Corrupt: `xml` is no domain's description, or one of `nics` no interface ("bad-domain-xml", "bad-interface-xml").
        Refused: as `rewrite_saved`: a disk that the spec does not name is in the definition only, and has yet to appear.
    """
    root = domain_xml.load(xml)
    place = _rewrite(root, spec)
    devices = _devices(root)
    for nic in reversed(nics):
        devices.insert(place, plain_xml.parse(nic, "interface", "bad-interface-xml"))
    for device in devices:
        remove(device, is_made_up_alias)
    return plain_xml.render(root)


def render_snapshot(disks: Mapping[str, str], memory: str = "", others: Sequence[str] = ()) -> str:
    """Return the <domainsnapshot> for virDomainSnapshotCreateXML.

    Args:
        disks: for each target that is captured, the qcow2 file that becomes its overlay.
        memory: the save image to write; empty: disks only.
        others: targets that are not captured. A domain's disks must all be named, or libvirt chooses for the rest.

    Raises:
        Refused: a path cannot stand in XML ("bad-text").
    """
    root = Element("domainsnapshot")
    external = {"snapshot": "external", "file": memory}
    SubElement(root, "memory", external if memory else {"snapshot": "no"})
    listed = SubElement(root, "disks")
    for target, path in disks.items():
        disk = SubElement(listed, "disk", {"name": target, "snapshot": "external", "type": "file"})
        SubElement(disk, "driver", {"type": "qcow2"})
        SubElement(disk, "source", {"file": path})
    for target in others:
        SubElement(listed, "disk", {"name": target, "snapshot": "no"})
    return plain_xml.render(root)


def with_disk(xml: str, target: str, path: str, form: str) -> str:
    """Return a domain's definition in which this disk is another file, of this format; all else is as it was.

    Raises:
        Corrupt: it is no domain's XML ("bad-domain-xml").
    """
    root = plain_xml.parse(xml, "domain", "bad-domain-xml")
    for disk in _devices(root).findall("disk"):
        driver, source = disk.find("driver"), disk.find("source")
        if attribute_of(disk, "target", "dev") == target and driver is not None and source is not None:
            driver.set("type", form)
            source.set("file", path)
            remove_all(disk, "backingStore")  # libvirt looks for itself
    return plain_xml.render(root)


def _rewrite(root: Element, spec: CloneSpec) -> int:
    """Make all that is the clone's own; return where among the devices the first interface stood, or the end."""
    root.attrib.pop("id", None)
    _set_identity(root, spec)
    _set_metadata(root, spec)
    _set_nvram(root, spec)
    _strip_labels(root)
    devices = _devices(root)
    for disk in devices.findall("disk"):
        _set_disk(disk, spec)
    domain_ports.set_ports(devices, spec.channels, spec.console_log)
    domain_ports.free_graphics(devices)
    for cid in devices.findall("vsock/cid"):
        cid.attrib = {"auto": "yes"}
    place = next((n for n, device in enumerate(devices) if device.tag == "interface"), len(devices))
    remove_all(devices, "interface")
    return place


def _set_identity(root: Element, spec: CloneSpec) -> None:
    old = plain_xml.text_of(root, "uuid").lower()
    remove_all(root, "title", "description", "hwuuid")
    _set_text(root, "name", spec.name)
    _set_text(root, "uuid", spec.uuid)
    for entry in root.iterfind("sysinfo/*/entry"):
        # libvirt refuses a system uuid that is not the domain's; some put the same into the serial number too.
        if old and (entry.text or "").strip().lower() == old:
            entry.text = spec.uuid
    genid = root.find("genid")
    if genid is not None:
        if not _is_uuid(spec.genid):
            raise _refuse("not-own", "the source has a VMGENID device, and the clone no genid for it")
        genid.text = spec.genid
    elif spec.genid:
        raise _refuse("unknown-part", "the clone has a genid, and its source no VMGENID device")


def _set_metadata(root: Element, spec: CloneSpec) -> None:
    metadata = root.find("metadata")
    if metadata is not None:
        remove(metadata, lambda child: namespace_of(child, root) != _LIBOSINFO)
    if spec.metadata:
        own = plain_xml.parse_any(spec.metadata, "bad-metadata")
        if metadata is None:
            metadata = Element("metadata")
            root.insert(_after(root, "name", "uuid", "genid"), metadata)
        metadata.append(own)
    elif metadata is not None and not len(metadata):
        root.remove(metadata)


def _set_nvram(root: Element, spec: CloneSpec) -> None:
    nvram, boot = root.find("os/nvram"), root.find("os")
    if nvram is None:
        # A definition that was never started: libvirt has yet to choose the firmware's file and would name one.
        if spec.nvram and boot is not None and boot.get("firmware") == "efi":
            nvram = SubElement(boot, "nvram")
        elif spec.nvram:
            raise _refuse("unknown-part", "the clone has firmware variables, and its source none")
        else:
            return
    if not spec.nvram:
        raise _refuse(
            "not-own", "the clone has no file for its firmware's variables, and must not write its source's"
        )
    source = nvram.find("source")
    if source is not None:
        _replace(nvram, source, Element("source", {"file": spec.nvram}))
        nvram.set("type", "file")
    else:
        nvram.text = spec.nvram


def _strip_labels(root: Element) -> None:
    for seclabel in root.findall("seclabel"):
        if seclabel.get("type", "dynamic") == "dynamic":
            remove_all(seclabel, "label", "imagelabel")


def _set_disk(disk: Element, spec: CloneSpec) -> None:
    about = domain_disks.parse_disk(disk)
    source = disk.find("source")
    if about.target not in spec.disks:
        if about.needs_own and not (about.device == "floppy" and source is None):
            raise _refuse(
                "not-own", f"the clone has no {about.target} of its own, and must not write its source's"
            )
        remove_all(disk, "backingStore")
        if source is not None:
            source.attrib.pop("index", None)
        return
    path, kind = spec.disks[about.target]
    remove_all(disk, *_RUNTIME_OF_DISK)
    disk.set("type", "file")
    driver = disk.find("driver")
    if driver is None:
        driver = Element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    driver.set("type", kind)
    # Anew: index, slices, reservations and labels were those of the source's file.
    own = Element("source", {"file": path})
    if source is None:
        disk.insert(list(disk).index(driver) + 1, own)
    else:
        _replace(disk, source, own)
    domain_disks.add_layers(disk, spec.layers.get(about.target, ()))


def _set_private_memory(root: Element) -> None:
    backing = root.find("memoryBacking")
    if backing is None:
        backing = Element("memoryBacking")
        root.insert(_after(root, "maxMemory", "memory", "currentMemory"), backing)
    for barred in ("hugepages", "locked"):
        if backing.find(barred) is not None:
            raise _refuse(
                "memory-backing", f"<{barred}/> in <memoryBacking> does not go with an image that is mapped"
            )
    if root.find("cpu/numa/cell") is not None:
        raise _refuse("memory-backing", "with NUMA cells its memory is not one block")
    # <allocation> would read in all of it, <discard> would punch holes into the image when the clone stops.
    remove(backing, lambda child: child.tag != "nosharepages")
    SubElement(backing, "source", {"type": "file"})
    SubElement(backing, "access", {"mode": "private"})


def _refuse_unknown(root: Element, spec: CloneSpec) -> None:
    targets = {attribute_of(disk, "target", "dev") for disk in root.iterfind("devices/disk")}
    channels = {attribute_of(channel, "target", "name") for channel in root.iterfind("devices/channel")}
    for what, unknown in (("disk", set(spec.disks) - targets), ("channel", set(spec.channels) - channels)):
        if unknown:
            raise _refuse("unknown-part", f"the clone has a {what} {min(unknown)}, and its source none")


def _devices(root: Element) -> Element:
    devices = root.find("devices")
    return SubElement(root, "devices") if devices is None else devices


def _set_text(root: Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = Element(tag)
        root.insert(0, element)
    element.text = text


def _replace(parent: Element, old: Element, new: Element) -> None:
    parent[list(parent).index(old)] = new


def _after(root: Element, *tags: str) -> int:
    """Return the place behind the last of these children."""
    return max((n + 1 for n, child in enumerate(root) if child.tag in tags), default=0)


def _is_uuid(text: str) -> bool:
    try:
        return bool(uuids.UUID(text))
    except ValueError:
        return False


def _refuse(code: str, seen: str) -> Refused:
    return Refused(
        f"the clone's domain cannot be described: {seen}",
        code=code,
        tried="rewriting a domain's XML for a clone",
        seen=seen,
        next_step="liveclone snapshot",
    )
