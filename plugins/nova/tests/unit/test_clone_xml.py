"""A clone is the captured machine under the identity that Nova gives to the new server."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import pytest

from liveclone.errors import Refused
from liveclone.formats import domain_rewrite, domain_xml
from liveclone_nova import clone_xml

# What Nova writes, what libvirt makes of it in a save image.
DOMAINS = Path(__file__).parents[4] / "tests" / "unit" / "domains"
NOVAS, SAVED = (DOMAINS / "nova.xml").read_text(), (DOMAINS / "nova.saved.xml").read_text()

UUID = "c2b3f6a0-1111-4222-8333-944445555666"
OLD = "6e4a4b2c-30f2-4c1d-9a59-0f2d7d3a1b05"
NEW = (
    NOVAS.replace(OLD, UUID)
    .replace("instance-0000002a", "instance-0000002b")
    .replace("web-1", "web-2")
    .replace("<shares>1024", "<shares>2048")
    .replace("placement='static'", "placement='static' cpuset='2-3'")
    .replace("0.0.0.0", "192.0.2.7")
    .replace("/instances/console.log", f"/instances/{UUID}/console.log")
    .replace("OpenStack Foundation", "Another Vendor")
)


def clone(saved: str = SAVED, novas: str = NEW) -> str:
    spec = clone_xml.plan(saved, novas)
    return clone_xml.adapt(domain_rewrite.rewrite_saved(saved, spec), novas)


def test_the_identity_is_novas() -> None:
    made = clone()
    found = domain_xml.parse_domain(made)
    assert (found.name, found.uuid) == ("instance-0000002b", UUID)
    assert [disk.path for disk in found.disks] == [f"/var/lib/nova/instances/{UUID}/disk"]
    assert {console.log for console in found.consoles} == {f"/var/lib/nova/instances/{UUID}/console.log"}
    assert "<nova:name>web-2</nova:name>" in made
    assert "Another Vendor" in made
    assert "<shares>2048</shares>" in made
    assert 'cpuset="2-3"' in made
    assert "192.0.2.7" in made


def test_nothing_of_the_source_is_left() -> None:
    made = clone()
    for old in (OLD, "instance-0000002a", "web-1", "0.0.0.0", "OpenStack Foundation", "fa:16:3e:01:02:03"):
        assert old not in made


def test_the_machine_is_the_saved_one_to_the_last_address() -> None:
    made, saved = domain_xml.load(clone()), domain_xml.load(SAVED)

    def devices(root: Element) -> list[tuple[str, dict[str, str]]]:
        found = [(device.tag, device.find("address")) for device in root.iterfind("devices/*")]
        return [(tag, at.attrib) for tag, at in found if at is not None and tag != "interface"]

    assert devices(made) == devices(saved)
    for tag in ("os/type", "cpu", "memory", "vcpu", "clock"):
        new, old = made.find(tag), saved.find(tag)
        assert new is not None
        assert old is not None
        assert new.text == old.text
        assert {key: new.get(key) for key in old.attrib} == old.attrib


def test_it_has_no_card_before_its_identity_is_settled() -> None:
    assert "<interface" not in clone()


def test_a_source_with_pinned_processors_pins_no_clone() -> None:
    made = clone(SAVED.replace("<vcpu placement='static'>", "<vcpu placement='static' cpuset='9'>"), NOVAS)
    assert "cpuset" not in made


def test_kernel_and_command_line_are_those_that_nova_fetched() -> None:
    boot = "<kernel>{0}/kernel</kernel><initrd>{0}/ramdisk</initrd><cmdline>{0}</cmdline><boot dev='hd'/>"
    saved, novas = (
        xml.replace("<boot dev='hd'/>", boot.format(place)) for xml, place in ((SAVED, "/old"), (NEW, "/new"))
    )
    found = domain_xml.parse_domain(clone(saved, novas))
    assert (found.kernel, found.initrd, found.cmdline) == ("/new/kernel", "/new/ramdisk", "/new")


def test_a_vmgenid_is_a_new_one() -> None:
    old = "11111111-1111-4111-8111-111111111111"
    saved = SAVED.replace("<memory ", f"<genid>{old}</genid><memory ", 1)
    genid = domain_xml.parse_domain(clone(saved)).genid
    assert genid
    assert genid != old


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("524288", "262144", "bytes of memory"),
        (">1</vcpu>", ">2</vcpu>", "processors"),
        ("type='kvm'", "type='qemu'", "virtualization"),
        (
            "dev='vda' bus='virtio'",
            "dev='vda' bus='scsi'",
            "disk vda on scsi: new, disk vda on virtio: missing",
        ),
        ("dev='vda'", "dev='vdb'", "disk vda on virtio: missing, disk vdb on virtio: new"),
        ("<graphics type='vnc'", "<graphics type='spice'", "screens: vnc, now spice"),
        ("type='file' device='disk'", "type='block' device='disk'", "it is no file"),
        ("<boot dev='hd'/>", "<kernel>/k</kernel>", "kernel of its own"),
    ],
)
def test_another_machine_is_refused(old: str, new: str, words: str) -> None:
    assert old in NEW
    with pytest.raises(Refused, match="another machine") as error:
        clone(novas=NEW.replace(old, new))
    assert words in error.value.message


def test_a_config_drive_is_another_machine() -> None:
    drive = (
        "<disk type='file' device='cdrom'><source file='/c'/><target dev='sda' bus='sata'/><readonly/></disk>"
    )
    with pytest.raises(Refused, match="cdrom sda on sata: new"):
        clone(novas=NEW.replace("<controller type='usb'", f"{drive}<controller type='usb'"))
