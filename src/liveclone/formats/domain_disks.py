"""Disks of libvirt domains: what they are, and which of them can be captured and given to a clone.

A snapshot freezes a disk by putting a qcow2 overlay on its file; a clone gets a file of its own over what was frozen. So a
disk must be a file, alone used by its machine, and all there is of it must be in that file and the images below it. Drives
differ: a CD that lies in one is only read, so all clones may have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from .domain_verdict import TAKE_OUT, Obstacle
from .plain_xml import attribute_of, need

# In a disk's <source>, the attribute that says where it is, by the disk's type.
_SOURCE_PATHS = {"file": "file", "block": "dev", "dir": "dir"}


@dataclass(frozen=True)
class DomainDisk:
    """A disk or drive. `device` is "disk", "cdrom", "floppy" or "lun"; `path` empty where there is no medium, and where
    the source is no path (`source_type` "network", "volume", "nvme", ...)."""

    target: str
    bus: str
    device: str
    source_type: str
    path: str
    format: str
    readonly: bool
    shareable: bool

    @property
    def needs_own(self) -> bool:
        """Each clone must have one of its own, because the guest can write it."""
        return self.device != "cdrom" and not self.readonly


@dataclass(frozen=True)
class Layer:
    """A file that a disk stands on. `is_ours`: libvirt is to leave its owner as it is."""

    path: str
    format: str
    is_ours: bool


def add_layers(disk: Element, layers: Sequence[Layer]) -> None:
    """Name what a disk stands on, from the top down: all of it, so that libvirt does not look for itself.

    libvirt changes the owner of each layer to QEMU's user and never back, but of those that are to be left alone. The label
    of the disk itself would hold for all of them, and for the overlays that its owner puts on later, so it has none.
    """
    above = disk
    for layer in layers:
        above = SubElement(above, "backingStore", {"type": "file"})
        SubElement(above, "format", {"type": layer.format})
        source = SubElement(above, "source", {"file": layer.path})
        if layer.is_ours:
            SubElement(source, "seclabel", {"model": "dac", "relabel": "no"})
    if layers:
        SubElement(above, "backingStore")


def parse_disk(disk: Element) -> DomainDisk:
    """Return what a <disk> element says.

    Raises:
        Corrupt: it has no target ("bad-domain-xml").
    """
    kind = disk.get("type", "file")
    return DomainDisk(
        target=need(attribute_of(disk, "target", "dev"), "<target dev=> of a disk"),
        bus=attribute_of(disk, "target", "bus"),
        device=disk.get("device", "disk"),
        source_type=kind,
        path=attribute_of(disk, "source", _SOURCE_PATHS[kind]) if kind in _SOURCE_PATHS else "",
        format=attribute_of(disk, "driver", "type") or "raw",  # libvirt does not guess
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
    )


def find_disk_obstacles(disk: Element) -> Iterator[Obstacle]:
    """Yield what bars this <disk>."""
    about = parse_disk(disk)
    what = f"disk {about.target}"
    is_drive = about.device in ("cdrom", "floppy")
    if is_drive and disk.find("source") is None:
        return
    if about.source_type != "file":
        eject = f"virsh change-media DOMAIN {about.target} --eject"
        why = f"its source is of type {about.source_type!r}; only files can be captured and layered"
        yield Obstacle(
            what, why, eject if is_drive else "move it into a file: virsh blockcopy, or qemu-img convert"
        )
    elif not about.path:
        yield Obstacle(what, "it has no source", TAKE_OUT)
    if about.device not in ("disk", "cdrom", "floppy"):
        yield Obstacle(what, f"a {about.device!r} passes commands to a device of the host", TAKE_OUT)
    if about.device == "floppy" and not about.readonly:
        yield Obstacle(
            what,
            "the guest can write the floppy, which all clones would share",
            "make it <readonly/>, or eject it",
        )
    if about.format not in ("qcow2", "raw"):
        yield Obstacle(
            what, f"its format is {about.format!r}; only qcow2 and raw are known", "qemu-img convert -O qcow2"
        )
    if about.shareable and not about.readonly:
        yield Obstacle(
            what, "it is <shareable/>: other machines write it too", "give the machine a disk of its own"
        )
    if attribute_of(disk, "driver", "name") not in ("", "qemu"):
        yield Obstacle(what, f"its driver is {attribute_of(disk, 'driver', 'name')!r}", TAKE_OUT)
    if about.bus == "nvme":
        yield Obstacle(
            what, "QEMU cannot save the state of an NVMe controller", "put it on the virtio or scsi bus"
        )
    if disk.find("transient") is not None:
        yield Obstacle(
            what, "it is <transient/>: libvirt layers and deletes it by itself", "take <transient/> out"
        )
    if disk.find("mirror") is not None:
        yield Obstacle(
            what,
            "libvirt is copying or committing it",
            f"virsh blockjob DOMAIN {about.target} --info; wait for it",
        )
    yield from _check_layers(disk, what)


def _check_layers(disk: Element, what: str) -> Iterator[Obstacle]:
    """What may stand in a source, or in that of any image below it."""
    parts = {
        "encryption": "it is encrypted, and its secret is libvirt's",
        "reservations": "its persistent reservations are held by a daemon outside QEMU",
        "slices": "it is a part of a file",
        "dataStore": "its data is in a second file",
    }
    for tag, why in parts.items():
        if next(disk.iter(tag), None) is not None:
            yield Obstacle(what, why, "move it into a qcow2 file of its own: qemu-img convert -O qcow2")
    for layer in disk.iter("backingStore"):
        kind = layer.get("type", "file")
        if kind not in ("file", "block"):
            yield Obstacle(
                what,
                f"an image below it is of type {kind!r}",
                "virsh blockpull DOMAIN, so that it stands alone",
            )
