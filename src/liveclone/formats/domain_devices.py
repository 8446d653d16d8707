"""Which devices of a libvirt domain can be cloned, element by element of <devices>.

    _SOUND     nothing of the host behind it, and QEMU saves its state
    _REFUSED   never
    _CHECKED   it depends

An element that stands in none of them is refused. What cloning does with each is in docs/libvirt.md. A device is refused
when a clone would share something of the host that has to be its own (a device, a file that is written, a server's one
client), when state of the guest lies outside QEMU, or when QEMU cannot save it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from . import domain_xml
from .plain_xml import attribute_of, text_of


@dataclass(frozen=True)
class Obstacle:
    """Something of a domain that cannot be cloned: `what` it is, `why` not, and what to do.

    `full_is_possible`: only the constant way is barred; a full clone, which copies all of the memory, can be made.
    """

    what: str
    why: str
    next_step: str
    full_is_possible: bool = False


TAKE_OUT = "take it out with virsh edit (or virsh detach-device, if it can be unplugged), and try again"

_SOUND = frozenset(
    # redirfilter only limits; a panic device, a watchdog, a balloon and USB hubs are the guest's alone
    ["emulator", "hub", "redirfilter", "watchdog", "memballoon", "panic"]
)
_REFUSED = {
    "hostdev": "a device of the host has one owner, and its state cannot be saved",
    "filesystem": "a folder of the host would be written by all clones, and its server's state lies outside QEMU",
    "tpm": "a TPM's state, with secrets that must be unique, lies outside QEMU",
    "shmem": "its memory is shared with others, who know nothing of the clone",
    "memory": "only memory that was there from the start (the block pc.ram) can be shared by clones",
    "lease": "a lease that a lock manager gave has one holder",
    "smartcard": "a card, or who stands for it, is outside QEMU",
    "crypto": "QEMU cannot save the state of a virtio-crypto device",
    "pstore": "its file would be written by all clones",
    "nvram": "it belongs to PowerPC machines",
}
_PORT_BACKENDS = ("pty", "file", "null", "vc", "spiceport", "unix")
_CHANNEL_BACKENDS = (*_PORT_BACKENDS, "spicevmc", "qemu-vdagent")
_GRAPHICS = ("vnc", "spice", "egl-headless", "sdl")
_NICS = (
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
)
_PCI_ROOTS = ("pcie-root", "pcie-expander-bus")


def find_device_obstacles(root: Element) -> Iterator[Obstacle]:
    """Yield what bars the devices of this <domain>, in their order."""
    macs: set[str] = set()
    for device in root.iterfind("devices/*"):
        if device.tag == "interface":
            yield from _check_nic(device, root, macs)
        elif device.tag in _CHECKED:
            yield from _CHECKED[device.tag](device)
        elif device.tag not in _SOUND:
            why = _REFUSED.get(device.tag, "liveclone does not know such a device")
            yield Obstacle(_name(device), why, TAKE_OUT)


def _check_disk(disk: Element) -> Iterator[Obstacle]:
    about = domain_xml.parse_disk(disk)
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


def _check_nic(nic: Element, root: Element, seen_macs: set[str]) -> Iterator[Obstacle]:
    """A NIC is unplugged for the snapshot, so it must be one that can be, and the same can be plugged again."""
    mac = attribute_of(nic, "mac", "address").lower()
    what, kind = f"interface {mac or '?'}", nic.get("type", "")
    if mac in seen_macs:
        yield Obstacle(what, "two interfaces have this MAC", "give one of them another MAC")
    seen_macs.add(mac)
    if kind not in _NICS:
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
        yield Obstacle(
            what, "it is no PCI card, so it cannot be unplugged for the snapshot", "use another model"
        )
        return
    bus = _parse_number(address.get("bus", "0"))
    for controller in root.iterfind("devices/controller[@type='pci']"):
        if _parse_number(controller.get("index", "-1")) != bus:
            continue
        if controller.get("model") in _PCI_ROOTS:
            why = "it sits on the PCIe root bus, where nothing can be unplugged"
            yield Obstacle(
                what, why, "take its <address> out with virsh edit: libvirt puts it on a root port"
            )
        elif attribute_of(controller, "target", "hotplug") == "off":
            yield Obstacle(
                what, f"hotplug is off on PCI controller {bus}", "take hotplug='off' out with virsh edit"
            )


def _check_port(port: Element) -> Iterator[Obstacle]:
    """Serial and parallel ports, consoles, channels."""
    kind, target = port.get("type", ""), attribute_of(port, "target", "type")
    what = _name(port, attribute_of(port, "target", "name") or attribute_of(port, "target", "port"))
    if port.tag == "channel" and target != "virtio":
        yield Obstacle(what, f"a channel to {target!r} leads to one place on the host", TAKE_OUT)
    elif kind not in (_CHANNEL_BACKENDS if port.tag == "channel" else _PORT_BACKENDS):
        why = f"it leads to something of the host that is there once (type {kind!r})"
        yield Obstacle(what, why, "use type pty, file, or unix with mode bind")
    elif kind == "unix" and attribute_of(port, "source", "mode") == "connect":
        yield Obstacle(what, "it is the client of a server, which knows one", "use a socket with mode bind")


def _check_graphics(graphics: Element) -> Iterator[Obstacle]:
    kind = graphics.get("type", "")
    if kind not in _GRAPHICS:
        yield Obstacle(
            f"graphics {kind}", "its server is outside QEMU, or not known here", "use VNC or SPICE"
        )


def _check_video(video: Element) -> Iterator[Obstacle]:
    if attribute_of(video, "model/acceleration", "accel3d") == "yes":
        why = "QEMU cannot save the state of 3D acceleration, which is in the host's graphics driver"
        yield Obstacle("video with accel3d", why, "set accel3d='no'")
    if attribute_of(video, "driver", "name") == "vhostuser":
        yield Obstacle("video (vhostuser)", "its state is in a process outside QEMU", "use another driver")


def _check_controller(controller: Element) -> Iterator[Obstacle]:
    kind = controller.get("type", "")
    if kind == "nvme":
        yield Obstacle(
            "controller nvme", "QEMU cannot save the state of an NVMe controller", "use virtio or scsi"
        )
    elif kind not in ("pci", "usb", "scsi", "sata", "ide", "fdc", "isa", "virtio-serial", "ccid"):
        yield Obstacle(f"controller {kind}", "liveclone does not know such a controller", TAKE_OUT)


def _check_input(device: Element) -> Iterator[Obstacle]:
    if device.get("type") not in ("mouse", "tablet", "keyboard"):
        yield Obstacle(_name(device, device.get("type", "")), _REFUSED["hostdev"], TAKE_OUT)


def _check_sound(sound: Element) -> Iterator[Obstacle]:
    model = sound.get("model", "")
    if model in ("usb", "virtio"):
        yield Obstacle(f"sound {model}", "QEMU cannot save the state of this sound card", "use model ich9")


def _check_audio(audio: Element) -> Iterator[Obstacle]:
    if audio.get("type") == "file":
        yield Obstacle("audio (file)", "its file would be written by all clones", "use type none or spice")


def _check_rng(rng: Element) -> Iterator[Obstacle]:
    model = attribute_of(rng, "backend", "model")
    if model not in ("random", "builtin"):
        why = f"it gets its randomness from one server (backend {model!r})"
        yield Obstacle("rng", why, "use <backend model='random'>/dev/urandom</backend>")


def _check_redirdev(redirdev: Element) -> Iterator[Obstacle]:
    # Of type spicevmc it is empty until a viewer puts a USB device into it, and empty again in a clone.
    if redirdev.get("type") != "spicevmc":
        yield Obstacle("redirdev", "it leads to one place on the network", "use type spicevmc, or none")


def _check_iommu(iommu: Element) -> Iterator[Obstacle]:
    model = iommu.get("model", "")
    if model not in ("intel", "virtio"):
        yield Obstacle(f"iommu {model}", "QEMU cannot save its state", "use model intel or virtio")


def _check_vsock(vsock: Element) -> Iterator[Obstacle]:
    model = vsock.get("model", "virtio")
    if not model.startswith("virtio"):
        yield Obstacle(f"vsock {model}", "liveclone does not know such a device", TAKE_OUT)


_CHECKED: dict[str, Callable[[Element], Iterator[Obstacle]]] = {
    "disk": _check_disk,
    "serial": _check_port,
    "parallel": _check_port,
    "console": _check_port,
    "channel": _check_port,
    "graphics": _check_graphics,
    "video": _check_video,
    "controller": _check_controller,
    "input": _check_input,
    "sound": _check_sound,
    "audio": _check_audio,
    "rng": _check_rng,
    "redirdev": _check_redirdev,
    "iommu": _check_iommu,
    "vsock": _check_vsock,
}


def _name(device: Element, detail: str = "") -> str:
    """Return words for a device by which its owner finds it."""
    detail = detail or " ".join(filter(None, (device.get("type"), device.get("model"))))
    where = (
        attribute_of(device, "target", "dir")
        or attribute_of(device, "source", "dir")
        or text_of(device, "source/block")
    )
    address = device.find("source/address")
    if address is not None:
        where = " ".join(f"{key}={value}" for key, value in address.attrib.items())
    return device.tag + (f" {detail}" if detail else "") + (f" ({where})" if where else "")


def _parse_number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise domain_xml.bad(f"a PCI bus is {text[:40]!r}") from error
