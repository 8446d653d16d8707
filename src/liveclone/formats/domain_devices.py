"""Which devices of a libvirt domain can be cloned, element by element of <devices>.

    SOUND     nothing of the host behind it, and QEMU saves its state
    REFUSED   never
    CHECKED   it depends

An element that stands in none of them is refused. What cloning does with each is in docs/libvirt.md. A device is refused
when a clone would share something of the host that has to be its own (a device, a file that is written, a server's one
client), when state of the guest lies outside QEMU, or when QEMU cannot save it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element

from .domain_disks import find_disk_obstacles
from .domain_nics import find_nic_obstacles
from .domain_verdict import TAKE_OUT, Obstacle
from .plain_xml import attribute_of, text_of

SOUND = frozenset(
    # redirfilter only limits; a panic device, a watchdog, a balloon and USB hubs are the guest's alone
    ["emulator", "hub", "redirfilter", "watchdog", "memballoon", "panic"]
)
REFUSED = {
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


def find_device_obstacles(root: Element) -> Iterator[Obstacle]:
    """Yield what bars the devices of this <domain>, in their order."""
    macs: set[str] = set()
    for device in root.iterfind("devices/*"):
        if device.tag == "interface":
            yield from find_nic_obstacles(device, root, macs)
        elif device.tag in CHECKED:
            yield from CHECKED[device.tag](device)
        elif device.tag not in SOUND:
            why = REFUSED.get(device.tag, "liveclone does not know such a device")
            yield Obstacle(_name(device), why, TAKE_OUT)


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
        yield Obstacle(_name(device, device.get("type", "")), REFUSED["hostdev"], TAKE_OUT)


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


CHECKED: dict[str, Callable[[Element], Iterator[Obstacle]]] = {
    "disk": find_disk_obstacles,
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
