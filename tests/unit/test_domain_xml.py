"""Domain XML, read: descriptions that libvirt 11.3 gave, text that is meant to do harm, and cards that come back the same.

The folder `domains` holds what `virsh dumpxml --inactive` (NAME.xml), `virsh dumpxml` (NAME.live.xml) and `virsh
save-image-dumpxml` (NAME.saved.xml) said of machines as virt-install, virt-manager and Nova make them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Corrupt, Refused
from liveclone.formats import domain_nics, plain_xml
from liveclone.formats.domain_xml import Domain, DomainChannel, DomainConsole, DomainDisk, parse_domain
from liveclone.units import GIB, MIB

DOMAINS = Path(__file__).parent / "domains"
NAMES = sorted(path.stem for path in DOMAINS.glob("*.xml") if "." not in path.stem)
UUID = "6e4a4b2c-30f2-4c1d-9a59-0f2d7d3a1b0"

SMALL = """<domain type='qemu'><name>small</name><uuid>{uuid}1</uuid><memory>1024</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"""


def read(name: str) -> Domain:
    return parse_domain((DOMAINS / f"{name}.xml").read_text())


def small(devices: str = "") -> str:
    return SMALL.format(uuid=UUID, devices=devices)


def test_a_cloud_image() -> None:
    domain = read("debian12.live")
    assert (domain.name, domain.uuid, domain.kind) == ("debian12", f"{UUID}1", "kvm")
    assert domain.id is not None
    assert (domain.ram_bytes, domain.vcpus, domain.arch) == (2 * GIB, 2, "x86_64")
    assert (domain.machine_type, domain.firmware, domain.nvram) == ("pc-q35-10.0", "bios", "")
    assert (domain.has_genid, domain.genid) == (False, "")
    images = "/var/lib/libvirt/images"
    assert domain.disks == (
        DomainDisk("vda", "virtio", "disk", "file", f"{images}/debian12.qcow2", "qcow2", False, False),
        DomainDisk("sda", "sata", "cdrom", "file", f"{images}/seed.iso", "raw", True, False),
    )
    assert [disk.needs_own for disk in domain.disks] == [True, False]
    (nic,) = domain.nics
    assert (nic.id, nic.mac) == ("nic-525400a1b2c3", "52:54:00:a1:b2:c3")
    assert (nic.kind, nic.source, nic.model, nic.alias) == ("network", "default", "virtio", "net0")
    agent = domain.find_channel("org.qemu.guest_agent.0")
    assert agent is not None
    assert agent.kind == "unix"
    assert agent.path.startswith("/run/libvirt/qemu/channel/")
    assert agent.state == "disconnected"
    assert domain.find_channel("org.liveclone.agent.0") is None
    assert [(console.tag, console.kind) for console in domain.consoles] == [
        ("serial", "pty"),
        ("console", "pty"),
    ]
    assert domain.consoles[0].path.startswith("/dev/pts/")


def test_uefi_with_several_disks_and_cards() -> None:
    domain = read("fedora-uefi")
    assert (domain.firmware, domain.nvram) == ("efi", "/var/lib/libvirt/qemu/nvram/fedora-uefi_VARS.fd")
    assert domain.nvram_format == "raw"
    assert (domain.id, domain.ram_bytes, domain.vcpus) == (None, GIB, 2)  # two of four are plugged
    assert [(disk.target, disk.format, disk.needs_own) for disk in domain.disks] == [
        ("vda", "qcow2", True),
        ("vdb", "raw", False),
        ("sda", "raw", True),
        ("sdb", "raw", False),
    ]
    assert domain.disks[2].path == "/srv/data disks/data&more.img"
    assert domain.disks[3].path == ""
    assert [(nic.kind, nic.source, nic.model) for nic in domain.nics] == [
        ("network", "lan", "virtio"),
        ("bridge", "lxbr1", "e1000e"),
    ]
    assert domain.channels == (
        DomainChannel("org.liveclone.agent.0", "unix", "/var/lib/agents/fedora.sock", ""),
    )
    assert domain.consoles[0] == DomainConsole("serial", "file", "/var/log/consoles/fedora.log", "")


def test_other_ordinary_machines() -> None:
    old, windows, nova, headless = (
        read(f"{name}.live") for name in ("i440fx", "windows", "nova", "headless")
    )
    assert (old.machine_type, old.kind, old.has_virtio_serial) == ("pc-i440fx-7.2", "qemu", False)
    assert old.consoles[0].log == "/var/log/consoles/mail.log"
    assert [disk.device for disk in old.disks] == ["disk", "floppy"]
    assert (old.nics[0].kind, old.nics[0].source) == ("user", "")
    assert (windows.has_genid, windows.genid) == (True, "43dc0cf8-809b-4adb-9bea-a9abb5f3d90e")
    assert (windows.ram_bytes, windows.vcpus) == (4 * GIB, 4)  # the balloon has a part of it
    assert nova.disks[0].path.endswith("/disk")
    assert headless.has_virtio_serial  # libvirt adds the controller for a virtio console
    assert (headless.kernel, headless.initrd) == ("/boot/guest/vmlinuz", "/boot/guest/initrd.img")
    assert headless.cmdline == 'console=ttyS0 root=/dev/vda rw note="a < b"'
    assert headless.cpu == "maximum"
    assert headless.nics == ()


@pytest.mark.parametrize("name", NAMES)
def test_the_three_descriptions_agree(name: str) -> None:
    """What a card amounts to while it is plugged must not be in what plugs it again."""
    defined, live, saved = read(name), read(f"{name}.live"), read(f"{name}.saved")
    assert [nic.xml for nic in live.nics] == [nic.xml for nic in defined.nics]
    for field in (
        "name",
        "uuid",
        "ram_bytes",
        "vcpus",
        "machine_type",
        "disks",
        "nvram",
        "firmware",
        "genid",
    ):
        assert getattr(live, field) == getattr(defined, field) == getattr(saved, field)
    assert (defined.id, saved.id) == (None, None)
    assert live.id


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("<memory>524288</memory>", 512 * MIB),
        ("<memory unit='MiB'> 512 </memory>", 512 * MIB),
        ("<memory unit='M'>1</memory>", MIB),
        ("<memory unit='MB'>1</memory>", 1_000_448),  # rounded up to KiB
        ("<memory unit='b'>1025</memory>", 2048),
        ("<memory unit='bytes'>1024</memory>", 1024),
        ("<memory unit='gib'>3</memory>", 3 * GIB),
        ("<memory unit='T' dumpCore='off'>1</memory>", 1024 * GIB),
    ],
)
def test_memory_in_all_units(memory: str, size: int) -> None:
    assert parse_domain(small().replace("<memory>1024</memory>", memory)).ram_bytes == size


LAUGHS = "<!DOCTYPE d [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 20}'>" for n in range(8)
)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "no element found"),
        ("domain", "syntax error"),
        ("<domain", "unclosed token"),
        (small() + "<more/>", "junk after document element"),
        (LAUGHS + "]><domain type='qemu'><name>&i;</name></domain>", "DOCTYPE"),
        ("<!DOCTYPE d SYSTEM 'file:///etc/passwd'>" + small(), "DOCTYPE"),
        ("<domain>" * 100_000, "more than 200 deep"),
        (small().replace("small", "\ud800"), "surrogates not allowed"),
        (small().replace("small", "\0"), "not well-formed"),
        (small().replace("small", "&undefined;"), "undefined entity"),
        ("<domain xmlns='http://other.example'/>", "it is a <domain>"),
        ("<network/>", "it is a <network>"),
        (small().replace("<name>small</name>", ""), "no <name>"),
        (small().replace("<name>small</name>", "<name> </name>"), "no <name>"),
        (small().replace(f"{UUID}1", ""), "no <uuid>"),
        (small().replace(f"{UUID}1", "1234"), "<uuid> is '1234', which is no UUID"),
        (small().replace("<memory>1024</memory>", ""), "no <memory>"),
        (small().replace("1024", "-1"), "<memory> is '-1', which is no number"),
        (small().replace("1024", "٣"), "which is no number"),
        (small().replace("1024", "9" * 5000), "which is no number"),
        (small().replace("<memory>", "<memory unit='pages'>"), "<memory> is in 'pages'"),
        (small().replace("<os>", "<genid>x</genid><os>"), "<genid> is 'x'"),
        (small().replace("<os>", "<vcpu>many</vcpu><os>"), "<vcpu> is 'many'"),
        (small().replace("type='qemu'", "type='qemu' id='x'"), "its id is 'x'"),
        (small().replace(" type='qemu'", ""), "no type="),
        (small().replace(" arch='x86_64'", ""), "no <type arch=>"),
        (small("<disk/>"), "no <target dev=> of a disk"),
        (small("<disk><target dev='vda'/></disk>" * 2), "two disks are vda"),
        (small("<interface type='user'/>"), "no <mac address=> of an interface"),
    ],
)
def test_what_is_no_description_is_refused_by_name(text: str, seen: str) -> None:
    with pytest.raises(Corrupt) as caught:
        parse_domain(text)
    assert caught.value.code == "bad-domain-xml"
    assert seen in caught.value.message


def test_far_too_long() -> None:
    with pytest.raises(Corrupt, match="far too many"):
        parse_domain(small() + " " * (16 << 20))


def card(text: str) -> str:
    (nic,) = parse_domain(small(text)).nics
    return nic.xml


MAC = "<mac address='52:54:00:12:34:56'/>"
PCI = "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"


def test_a_network_that_amounts_to_a_bridge() -> None:
    assert card(
        f"""<interface type='bridge'>{MAC}
        <source network='lan' portgroup='web' portid='3b58dc67-6307-4928-85e0-098067b3bfa4' bridge='br0'/>
        <target dev='vnet12'/><alias name='net3'/>{PCI}</interface>"""
    ) == plain_xml.render(
        plain_xml.parse_any(
            f"<interface type='network'>{MAC}<source network='lan' portgroup='web'/>{PCI}</interface>", ""
        )
    )


@pytest.mark.parametrize(
    "kept",
    [
        "<target dev='web0'/>",
        "<target dev='vnetwork'/>",
        "<target dev='tap3' managed='no'/>",
        "<alias name='ua-mine'/>",
        "<vlan><tag id='42'/></vlan>",
        "<filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.1'/></filterref>",
        "<virtualport type='openvswitch'><parameters interfaceid='3b58dc67-6307-4928-85e0-098067b3bfa4'/></virtualport>",
        "<driver name='vhost' queues='4'><host csum='off'/></driver>",
        "<mtu size='9000'/><link state='down'/><boot order='1'/><rom enabled='no'/><acpi index='2'/>",
        "<bandwidth><inbound average='1000' peak='5000'/></bandwidth><port isolated='yes'/>",
        "<backend type='passt' logFile='/var/log/passt.log'/><portForward proto='tcp'/>",
        "<ip address='172.17.2.0' family='ipv4' prefix='24'/>",
    ],
)
def test_what_somebody_chose_for_a_card_is_kept(kept: str) -> None:
    text = f"<interface type='bridge'>{MAC}<source bridge='br0'/>{kept}{PCI}</interface>"
    assert card(text) == plain_xml.render(plain_xml.parse_any(text, ""))


@pytest.mark.parametrize("made_up", ["vnet0", "vnet12", "macvtap3", "macvlan1"])
def test_names_that_libvirt_made_up_go(made_up: str) -> None:
    text = f"<interface type='direct'>{MAC}<source dev='eth0' mode='bridge'/>{PCI}</interface>"
    assert card(text.replace(PCI, f"<target dev='{made_up}'/>{PCI}")) == card(text)


def test_a_clones_card_has_nothing_that_can_be_there_once() -> None:
    source = f"""<interface type='bridge'>{MAC}<source bridge='br0'><ip address='10.0.0.9'/></source><target dev='web0'/>
        <virtualport type='openvswitch'>
          <parameters interfaceid='3b58dc67-6307-4928-85e0-098067b3bfa4' profileid='web'/>
        </virtualport>
        <filterref filter='clean-traffic'>
          <parameter name='IP' value='10.0.0.1'/><parameter name='DHCPSERVER' value='10.0.0.2'/>
        </filterref>
        <backend type='passt' logFile='/var/log/passt.log'/><portForward proto='tcp'><range start='22'/></portForward>
        <ip address='10.0.0.1' prefix='24'/><route address='0.0.0.0' gateway='10.0.0.2'/>
        <vlan><tag id='42'/></vlan><model type='virtio'/><mtu size='1400'/><boot order='1'/>{PCI}</interface>"""
    expected = f"""<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
        <virtualport type='openvswitch'><parameters profileid='web'/></virtualport>
        <filterref filter='clean-traffic'><parameter name='DHCPSERVER' value='10.0.0.2'/></filterref>
        <backend type='passt'/>
        <vlan><tag id='42'/></vlan><model type='virtio'/><mtu size='1400'/><boot order='1'/>{PCI}</interface>"""
    made = domain_nics.nic_for_clone(source, "52:54:00:00:00:01")
    assert made == plain_xml.render(plain_xml.parse_any(expected, ""))
    assert domain_nics.nic_for_clone(made, "52:54:00:00:00:01") == made


def test_the_little_network_of_a_user_card_stays() -> None:
    ip = "<ip address='172.17.2.0' family='ipv4' prefix='24'/>"
    made = domain_nics.nic_for_clone(f"<interface type='user'>{MAC}{ip}</interface>", "52:54:00:00:00:01")
    assert "172.17.2.0" in made


def test_what_is_no_card() -> None:
    with pytest.raises(Corrupt) as caught:
        domain_nics.nic_for_clone("<disk/>", "52:54:00:00:00:01")
    assert caught.value.code == "bad-interface-xml"


FOREIGN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><!-- c --><?p i?>
<metadata><a:b xmlns:a='http://a.example' a:c='&lt;"&amp;'>one<a:d/>two</a:b></metadata>
<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"""


def test_names_stay_as_they_are_written() -> None:
    root = plain_xml.parse(FOREIGN, "domain", "bad")
    assert plain_xml.namespace_of(root[1], root) == "http://libvirt.org/schemas/domain/qemu/1.0"
    assert plain_xml.namespace_of(root[0][0], root) == "http://a.example"
    written = plain_xml.render(root)
    assert "<qemu:commandline>" in written
    assert """<a:b xmlns:a="http://a.example" a:c="&lt;&quot;&amp;">one<a:d />two</a:b>""" in written
    assert plain_xml.render(plain_xml.parse(written, "domain", "bad")) == written


xml_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"))


@given(value=xml_texts, attribute=st.text(st.one_of(st.sampled_from("\t\n\r"), st.characters(codec="utf-8"))))
def test_texts_come_back(value: str, attribute: str) -> None:
    root = plain_xml.parse_any("<a b=''><c/></a>", "")
    root[0].text = value
    root.set("b", attribute)
    if any((ord(char) < 32 and char not in "\t\n\r") or char in "\ufffe\uffff" for char in attribute):
        with pytest.raises(Refused):
            plain_xml.render(root)
        return
    read = plain_xml.parse(plain_xml.render(root), "a", "bad")
    assert read.get("b") == attribute
    assert (read[0].text or "") == value
