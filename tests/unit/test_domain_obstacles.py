"""What cannot be cloned is named, each by itself; ordinary machines have nothing of the kind; the table in docs is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from liveclone.errors import Corrupt
from liveclone.formats import domain_devices
from liveclone.formats.domain_obstacles import find_obstacles

DOMAINS = Path(__file__).parent / "domains"
DOCS = Path(__file__).parents[2] / "docs" / "libvirt.md"
NAMES = sorted(path.stem for path in DOMAINS.glob("*.xml"))
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def load(name: str) -> str:
    return (DOMAINS / f"{name}.xml").read_text()


def names(xml: str) -> list[str]:
    for obstacle in find_obstacles(xml):
        assert obstacle.why
        assert obstacle.next_step
    return [obstacle.what for obstacle in find_obstacles(xml)]


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_machines_can_be_cloned(name: str) -> None:
    assert find_obstacles(load(name)) == ()


def disk(
    rest: str = "", head: str = "type='file' device='disk'", source: str = "<source file='/x.img'/>"
) -> str:
    return (
        f"<disk {head}><driver name='qemu' type='raw'/>{source}<target dev='vdx' bus='virtio'/>{rest}</disk>"
    )


def nic(head: str, rest: str = "") -> str:
    return f"<interface {head}><mac address='52:54:00:00:00:0a'/>{rest}</interface>"


REFUSED_DEVICES = [
    (
        "<hostdev mode='subsystem' type='pci'><source><address domain='0x0' bus='0x3'/></source></hostdev>",
        "hostdev pci",
    ),
    ("<hostdev mode='subsystem' type='usb'/>", "hostdev usb"),
    ("<hostdev mode='subsystem' type='mdev' model='vfio-pci'/>", "hostdev mdev"),
    ("<hostdev mode='subsystem' type='scsi'/>", "hostdev scsi"),
    ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", "tpm tpm-crb"),
    (
        "<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>",
        "filesystem mount (srv)",
    ),
    ("<shmem name='s'><model type='ivshmem-plain'/></shmem>", "shmem"),
    ("<memory model='dimm'/>", "memory dimm"),
    ("<memory model='nvdimm'/>", "memory nvdimm"),
    ("<memory model='virtio-mem'/>", "memory virtio-mem"),
    ("<lease><key>k</key></lease>", "lease"),
    ("<smartcard mode='host'/>", "smartcard"),
    ("<crypto model='virtio' type='qemu'/>", "crypto qemu virtio"),
    ("<pstore backend='acpi-erst'/>", "pstore"),
    ("<teleporter model='virtio'/>", "teleporter virtio"),
    ("<redirdev bus='usb' type='tcp'/>", "redirdev"),
    ("<input type='evdev'/>", "input evdev"),
    ("<input type='passthrough' bus='virtio'/>", "input passthrough"),
    ("<sound model='virtio'/>", "sound virtio"),
    ("<audio id='1' type='file' path='/x.wav'/>", "audio (file)"),
    ("<rng model='virtio'><backend model='egd' type='udp'/></rng>", "rng"),
    ("<video><model type='virtio'><acceleration accel3d='yes'/></model></video>", "video with accel3d"),
    ("<video><driver name='vhostuser'/><model type='virtio'/></video>", "video (vhostuser)"),
    ("<graphics type='rdp'/>", "graphics rdp"),
    ("<controller type='nvme'/>", "controller nvme"),
    ("<controller type='xenbus'/>", "controller xenbus"),
    ("<iommu model='amd'/>", "iommu amd"),
    ("<vsock model='other'><cid auto='yes'/></vsock>", "vsock other"),
    (
        "<serial type='tcp'><source mode='bind' host='0' service='2222'/><target port='1'/></serial>",
        "serial 1",
    ),
    ("<serial type='dev'><source path='/dev/ttyS0'/><target port='1'/></serial>", "serial 1"),
    ("<parallel type='dev'><source path='/dev/parport0'/></parallel>", "parallel dev"),
    ("<console type='pipe'><target type='virtio' port='2'/></console>", "console 2"),
    (
        "<channel type='unix'><source mode='connect' path='/s'/><target type='virtio' name='a.b'/></channel>",
        "channel a.b",
    ),
    ("<channel type='tcp'><target type='virtio' name='a.b'/></channel>", "channel a.b"),
    (
        "<channel type='unix'><target type='guestfwd' address='10.0.2.1' port='4600'/></channel>",
        "channel 4600",
    ),
    (nic("type='hostdev'"), "interface 52:54:00:00:00:0a (type 'hostdev')"),
    (nic("type='vdpa'"), "interface 52:54:00:00:00:0a (type 'vdpa')"),
    (nic("type='vhostuser'"), "interface 52:54:00:00:00:0a (type 'vhostuser')"),
    (nic("type='vds'"), "interface 52:54:00:00:00:0a (type 'vds')"),
    (nic("type='user'", "<address type='usb' bus='0' port='1'/>"), "interface 52:54:00:00:00:0a"),
    (nic("type='user'", "<address type='pci' bus='0x00' slot='0x03'/>"), "interface 52:54:00:00:00:0a"),
    (nic("type='user'") * 2, "interface 52:54:00:00:00:0a"),
    (disk(head="type='block' device='disk'", source="<source dev='/dev/vg/x'/>"), "disk vdx"),
    (disk(head="type='network' device='disk'", source="<source protocol='rbd' name='a/b'/>"), "disk vdx"),
    (disk(head="type='volume' device='disk'", source="<source pool='p' volume='v'/>"), "disk vdx"),
    (disk(head="type='vhostuser' device='disk'"), "disk vdx"),
    (disk(head="type='nvme' device='disk'"), "disk vdx"),
    (disk(head="type='block' device='cdrom'", source="<source dev='/dev/sr0'/>"), "disk vdx"),
    (disk(head="type='file' device='floppy'"), "disk vdx"),
    (disk(source=""), "disk vdx"),
    (disk("<shareable/>"), "disk vdx"),
    (disk("<transient/>"), "disk vdx"),
    (disk("<encryption format='luks'/>"), "disk vdx"),
    (disk("<mirror type='file' job='copy'/>"), "disk vdx"),
    (disk("<backingStore type='network'/>"), "disk vdx"),
    (disk(source="<source file='/x'><reservations managed='yes'/></source>"), "disk vdx"),
    (disk(source="<source file='/x'><slices><slice type='storage'/></slices></source>"), "disk vdx"),
    (disk(source="<source file='/x'><dataStore type='file'/></source>"), "disk vdx"),
    (disk().replace("'raw'", "'vmdk'"), "disk vdx"),
    (disk().replace("'qemu'", "'tap'"), "disk vdx"),
    (disk().replace("bus='virtio'", "bus='nvme'"), "disk vdx"),
]


@pytest.mark.parametrize(("device", "what"), REFUSED_DEVICES)
def test_each_device_that_cannot_be_cloned_is_named(device: str, what: str) -> None:
    (found,) = names(load("debian12.live").replace("</devices>", f"{device}</devices>"))
    assert found.startswith(what)


def test_a_lun_is_refused_for_both_reasons() -> None:
    xml = load("debian12").replace("</devices>", disk(head="type='block' device='lun'") + "</devices>")
    assert names(xml) == ["disk vdx", "disk vdx"]


@pytest.mark.parametrize(
    "device",
    [
        disk(head="type='block' device='cdrom'", source=""),
        disk("<readonly/><shareable/>"),
        disk("<backingStore type='block'><source dev='/dev/vg/base'/></backingStore>"),
        nic("type='direct'", "<source dev='eth0' mode='bridge'/>"),
        "<redirdev bus='usb' type='spicevmc'/><redirfilter/><hub type='usb'/><panic model='hyperv'/>",
        "<vsock model='virtio'><cid auto='no' address='9'/></vsock><iommu model='intel'/>",
        "<graphics type='vnc' port='5999' autoport='no'/><watchdog model='i6300esb'/>",
        "<rng model='virtio'><backend model='builtin'/></rng><sound model='ac97'/><audio id='1' type='spice'/>",
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
        "<serial type='file'><source path='/x.log'/></serial><parallel type='null'/>",
    ],
)
def test_devices_that_can_be_cloned(device: str) -> None:
    assert names(load("debian12").replace("</devices>", f"{device}</devices>")) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("<domain type='kvm'", "<domain type='xen'", "domain type xen"),
        ("arch='x86_64'", "arch='aarch64'", "architecture aarch64"),
        (">hvm<", ">exe<", "architecture x86_64"),
        ("machine='pc-q35-10.0'", "machine='microvm'", "machine type microvm"),
        ("<vcpu", "<cpu><numa><cell id='0' memory='1'/></numa></cpu><vcpu", "cpu/numa"),
        ("<os>", "<launchSecurity type='sev'/><os>", "launchSecurity sev"),
        ("<os>", "<launchSecurity type='tdx'/><os>", "launchSecurity tdx"),
        ("<os>", "<keywrap/><os>", "keywrap"),
        ("</os>", "<varstore/></os>", "os/varstore"),
        ("</os>", "<loader type='pflash' readonly='no'>/x.fd</loader></os>", "os/loader"),
        ("</os>", "<nvram>/x.fd</nvram></os>", "os/nvram"),
        (
            "</devices>",
            f"</devices><qemu:commandline {QEMU}><qemu:arg value='-x'/></qemu:commandline>",
            "qemu:commandline",
        ),
        ("</devices>", f"</devices><qemu:news {QEMU}/>", "qemu:news"),
        ("</devices>", "</devices><o:x xmlns:o='http://other.example'/>", "o:x"),
        ("bus='0x01' slot", "bus='0x00' slot", "interface 52:54:00:a1:b2:c3"),
        ("<target chassis='1'", "<target hotplug='off' chassis='1'", "interface 52:54:00:a1:b2:c3"),
    ],
)
def test_what_stands_outside_of_the_devices(old: str, new: str, what: str) -> None:
    xml = load("debian12.live")
    assert old in xml
    assert names(xml.replace(old, new, 1)) == [what]


@pytest.mark.parametrize(
    ("new", "what", "why"),
    [
        (
            "<nvram type='network'><source protocol='iscsi' name='x'/></nvram>",
            "os/nvram",
            "of type 'network'",
        ),
        ("<nvram type='block'><source dev='/dev/x'/></nvram>", "os/nvram", "of type 'block'"),
        ("<nvram format='vmdk'>/x.fd</nvram>", "os/nvram", "format is 'vmdk'"),
        (
            "<nvram type='file'><source file='/x.fd'><encryption/></source></nvram>",
            "os/nvram/encryption",
            "does not know",
        ),
        (
            "<nvram type='file'><source file='/x.fd'/><backingStore/></nvram>",
            "os/nvram/backingStore",
            "does not",
        ),
    ],
)
def test_variables_of_firmware_that_no_clone_can_have(new: str, what: str, why: str) -> None:
    xml = load("fedora-uefi.live")
    old = xml[xml.index("<nvram") : xml.index("</nvram>") + len("</nvram>")]
    (found,) = find_obstacles(xml.replace(old, new))
    assert found.what == what
    assert why in found.why


def test_variables_of_firmware_that_clones_can_have() -> None:
    xml = load("fedora-uefi.live")
    old = xml[xml.index("<nvram") : xml.index("</nvram>") + len("</nvram>")]
    for new in (
        "<nvram format='qcow2'>/x</nvram>",
        "<nvram type='file'><source file='/x'><seclabel/></source></nvram>",
    ):
        assert names(xml.replace(old, new)) == []
    assert names(load("debian12.live").replace("<os>", "<os firmware='efi'>")) == []


def test_cards_that_cannot_be_unplugged_where_they_are() -> None:
    old = load("i440fx")
    mac = "interface 52:54:00:00:00:01"
    assert names(old.replace("<acpi/>", "")) == [mac]
    shared = "<address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x1'/>"
    assert names(old.replace("</devices>", f"<sound model='ac97'>{shared}</sound></devices>")) == [mac]
    assert names(load("debian12").replace("<acpi/>", "")) == []  # PCIe root ports do it themselves


@pytest.mark.parametrize("inside", ["<hugepages/>", "<locked/>"])
def test_memory_that_only_full_clones_can_have(inside: str) -> None:
    xml = load("debian12").replace("<os>", f"<memoryBacking>{inside}</memoryBacking><os>")
    (found,) = find_obstacles(xml)
    assert found.full_is_possible


def test_an_empty_command_line_bars_nothing() -> None:
    xml = load("debian12").replace(
        "</devices>", f"</devices><qemu:commandline {QEMU}/><qemu:override {QEMU}/>"
    )
    assert names(xml) == []


def test_no_description() -> None:
    with pytest.raises(Corrupt):
        find_obstacles("<domain")


def test_a_bus_that_is_no_number() -> None:
    with pytest.raises(Corrupt, match="a PCI address has 'x' in it"):
        find_obstacles(load("debian12").replace("bus='0x01' slot", "bus='x' slot"))


def test_the_table_in_docs_has_every_device() -> None:
    table = DOCS.read_text().split("### Devices")[1].split("\n### ")[0]
    listed = {
        tag
        for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
        for tag in re.findall(r"`(\w+)`", row)
    }
    known = (
        domain_devices.SOUND | domain_devices.REFUSED.keys() | domain_devices.CHECKED.keys() | {"interface"}
    )
    assert listed == known
