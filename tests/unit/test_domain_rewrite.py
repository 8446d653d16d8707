"""A clone's descriptions: all that is its own, and nothing else, differs from its source's.

`domains/NAME.clone.diff` holds every line in which the XML of a clone's save image differs from that of its source's, and
`NAME.definition.diff` the same for its definition. They were read by a person. After a change that is meant, write them anew
with `PYTHONPATH=src:tests python -m unit.test_domain_rewrite` and read what git says.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Corrupt, Refused
from liveclone.formats import domain_xml, plain_xml
from liveclone.formats.domain_nics import nic_for_clone
from liveclone.formats.domain_obstacles import find_obstacles
from liveclone.formats.domain_rewrite import (
    CloneSpec,
    render_definition,
    render_snapshot,
    rewrite_saved,
    with_disk,
)
from liveclone.formats.domain_xml import parse_domain

DOMAINS = Path(__file__).parent / "domains"
NAMES = sorted(path.stem for path in DOMAINS.glob("*.xml") if "." not in path.stem)
UUID = "11111111-2222-4333-8444-555555555555"
GENID = "99999999-2222-4333-8444-555555555555"
MARK = '<liveclone:clone xmlns:liveclone="https://liveclone.example/1" snapshot="5f0c3a"/>'


def load(name: str) -> str:
    return (DOMAINS / f"{name}.xml").read_text()


def spec_for(xml: str) -> CloneSpec:
    """A spec that suits this domain."""
    domain = parse_domain(xml)
    return CloneSpec(
        name="clone-1",
        uuid=UUID,
        disks={
            disk.target: (f"/clones/1/{disk.target}.qcow2", "qcow2")
            for disk in domain.disks
            if disk.needs_own
        },
        genid=GENID if domain.has_genid else "",
        channels={
            c.name: "/clones/1/agent.sock" for c in domain.channels if c.name == "org.liveclone.agent.0"
        },
        console_log="/clones/1/console.log",
        nvram="/clones/1/nvram.fd" if domain.nvram else "",
        private_memory=True,
    )


def define(xml: str) -> str:
    nics = [nic_for_clone(nic.xml, f"52:54:00:00:00:0{n}") for n, nic in enumerate(parse_domain(xml).nics)]
    return render_definition(xml, spec_for(xml), nics)


MADE: dict[str, tuple[str, Callable[[str], str]]] = {
    "clone": ("saved", lambda xml: rewrite_saved(xml, spec_for(xml))),
    "definition": ("", define),
}


def differences(name: str, kind: str) -> str:
    state, make = MADE[kind]
    xml = load(f"{name}.{state}" if state else name)
    before = plain_xml.render(domain_xml.load(xml))
    lines = difflib.unified_diff(
        before.splitlines(), make(xml).splitlines(), "source", kind, n=0, lineterm=""
    )
    return "\n".join(line for line in lines if not line.startswith("@@")) + "\n"


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_its_own_differs(name: str, kind: str) -> None:
    assert differences(name, kind) == (DOMAINS / f"{name}.{kind}.diff").read_text()


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", NAMES)
def test_twice_is_once(name: str, kind: str) -> None:
    state, make = MADE[kind]
    once = make(load(f"{name}.{state}" if state else name))
    assert make(once) == once


@pytest.mark.parametrize("name", NAMES)
def test_a_live_description_gives_the_same_definition(name: str) -> None:
    """A transient domain has no other. What libvirt fills in while it runs is the exception."""

    def strip(xml: str) -> str:
        root = domain_xml.load(xml)
        plain_xml.remove_all(root, "seclabel", "resource", "cpu", "currentMemory")
        devices = root.find("devices")
        assert devices is not None
        for drive in devices.iterfind("disk[@device='cdrom']"):
            plain_xml.remove_all(drive, "driver")
        devices[:] = sorted(devices, key=ElementTree.tostring)
        return plain_xml.render(root)

    assert strip(define(load(f"{name}.live"))) == strip(define(load(name)))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_source_is_left(name: str) -> None:
    """Of its paths only those of what is read alone: media, firmware, kernel."""
    xml = load(f"{name}.live")
    source = parse_domain(xml)
    made = rewrite_saved(xml, spec_for(xml))
    gone = [
        source.name,
        source.uuid,
        source.nvram,
        "backingStore",
        "vnet",
        "/dev/pts",
        "console.log/",
        'port="59',
    ]
    gone += [disk.path for disk in source.disks if disk.needs_own] + [nic.mac for nic in source.nics]
    gone += [channel.path for channel in source.channels] + [console.log for console in source.consoles]
    for text in filter(None, gone):
        assert text not in made.replace(spec_for(xml).console_log, "")


path_texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff"), min_size=1
).map(lambda text: "/" + text + "/x")


@given(
    name=path_texts,
    disks=st.lists(path_texts, min_size=2, max_size=2),
    socket=path_texts,
    nvram=path_texts,
    uuid=st.uuids().map(str),
    kinds=st.lists(st.sampled_from(["qcow2", "raw"]), min_size=2, max_size=2),
)
def test_what_was_asked_for_is_read_again(
    name: str, disks: list[str], socket: str, nvram: str, uuid: str, kinds: list[str]
) -> None:
    xml = load("fedora-uefi.saved")
    spec = CloneSpec(
        name=name,
        uuid=uuid,
        disks={"vda": (disks[0], kinds[0]), "sda": (disks[1], kinds[1])},
        channels={"org.liveclone.agent.0": socket},
        nvram=nvram,
    )
    source, clone = parse_domain(xml), parse_domain(rewrite_saved(xml, spec))
    own = {disk.target: (disk.path, disk.format) for disk in clone.disks if disk.needs_own}
    assert (clone.name, clone.uuid, clone.nvram, own) == (name, uuid, nvram, spec.disks)
    assert clone.channels[0].path == socket
    assert clone.nics == ()
    assert [disk.path for disk in clone.disks if not disk.needs_own] == [
        disk.path for disk in source.disks if not disk.needs_own
    ]
    for field in (
        "ram_bytes",
        "vcpus",
        "machine_type",
        "cpu",
        "arch",
        "kernel",
        "cmdline",
        "firmware",
        "kind",
    ):
        assert getattr(clone, field) == getattr(source, field)


@pytest.mark.parametrize(
    ("name", "changes", "code", "seen"),
    [
        ("fedora-uefi", {"disks": {"vda": ("/x", "raw")}}, "not-own", "no sda of its own"),
        ("fedora-uefi", {"nvram": ""}, "not-own", "firmware's variables"),
        ("windows", {"genid": ""}, "not-own", "VMGENID"),
        ("windows", {"genid": "x"}, "not-own", "VMGENID"),
        ("debian12", {"genid": GENID}, "unknown-part", "VMGENID"),
        ("debian12", {"nvram": "/x"}, "unknown-part", "firmware variables"),
        ("debian12", {"channels": {"org.x": ""}}, "unknown-part", "channel org.x"),
        ("debian12", {"disks": {"vda": ("/x", "raw"), "vdz": ("/y", "raw")}}, "unknown-part", "disk vdz"),
        ("debian12", {"name": "a\x07b"}, "bad-text", "\\x07"),
        ("debian12", {"disks": {"vda": ("/\ud800", "raw")}}, "bad-text", "ud800"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, object], code: str, seen: str) -> None:
    xml = load(f"{name}.saved")
    with pytest.raises(Refused) as caught:
        rewrite_saved(xml, replace(spec_for(xml), **changes))  # type: ignore[arg-type]
    assert caught.value.code == code
    assert seen in caught.value.message


@given(
    name=st.sampled_from(NAMES),
    at=st.floats(0, 1),
    length=st.integers(0, 60),
    put=st.sampled_from(["", "x", "<a>", "'", "9"]),
)
def test_damage_is_refused_or_does_no_harm(name: str, at: float, length: int, put: str) -> None:
    xml = load(f"{name}.live")
    place = int(at * len(xml))
    damaged = xml[:place] + put + xml[place + length :]
    spec = spec_for(xml)
    with contextlib.suppress(Corrupt, Refused):
        find_obstacles(damaged)
        domain = parse_domain(damaged)
        clone = parse_domain(rewrite_saved(damaged, spec))
        assert (clone.name, clone.uuid, clone.nics) == (spec.name, spec.uuid, ())
        mine = {disk.path for disk in domain.disks if disk.needs_own and disk.path}
        assert mine.isdisjoint(disk.path for disk in clone.disks)


def with_backing(text: str) -> str:
    return load("debian12.saved").replace("<vcpu", f"<memoryBacking>{text}</memoryBacking><vcpu", 1)


@pytest.mark.parametrize(
    "barred", ["<hugepages/>", "<hugepages><page size='2' unit='M'/></hugepages>", "<locked/>"]
)
def test_memory_that_cannot_be_mapped(barred: str) -> None:
    xml = with_backing(barred)
    with pytest.raises(Refused) as caught:
        rewrite_saved(xml, spec_for(xml))
    assert caught.value.code == "memory-backing"
    assert barred[:7] in rewrite_saved(xml, replace(spec_for(xml), private_memory=False))


def test_memory_in_cells_cannot_be_mapped() -> None:
    xml = load("debian12.saved").replace(
        "<cpu mode='host-passthrough' check='none' migratable='on'/>",
        "<cpu mode='host-passthrough'><numa><cell id='0' cpus='0-1' memory='1'/></numa></cpu>",
    )
    with pytest.raises(Refused, match="NUMA"):
        rewrite_saved(xml, spec_for(xml))


def test_what_would_spoil_the_image_goes() -> None:
    xml = with_backing("<nosharepages/><source type='memfd'/><allocation mode='immediate'/><discard/>")
    root = domain_xml.load(rewrite_saved(xml, spec_for(xml)))
    backing = root.find("memoryBacking")
    assert backing is not None
    assert [(child.tag, child.attrib) for child in backing] == [
        ("nosharepages", {}),
        ("source", {"type": "file"}),
        ("access", {"mode": "private"}),
    ]


def test_a_definition_has_no_trick_in_it() -> None:
    for name in NAMES:
        assert "memoryBacking" not in load(name) or "private" not in load(name)
        assert 'mode="private"' not in define(load(name))


def test_a_definition_passes_over_what_was_plugged_just_for_now() -> None:
    spec = spec_for(load("debian12"))
    more = replace(spec, disks={**spec.disks, "vdz": ("/x", "raw")}, channels={"org.liveclone.agent.0": "/s"})
    assert render_definition(load("debian12"), more) == render_definition(load("debian12"), spec)
    pending = load("debian12").replace("dev='vda'", "dev='vdb'")
    with pytest.raises(Refused, match="no vdb of its own"):
        render_definition(pending, spec)


def test_a_definition_that_was_never_started_gets_its_variables() -> None:
    xml = load("debian12").replace("<os>", "<os firmware='efi'>")
    made = parse_domain(render_definition(xml, replace(spec_for(xml), nvram="/clones/1/nvram.fd")))
    assert (made.firmware, made.nvram) == ("efi", "/clones/1/nvram.fd")


def test_variables_of_a_typed_source() -> None:
    xml = load("fedora-uefi.saved")
    start, end = xml.index("<nvram"), xml.index("</nvram>")
    typed = xml[:start] + "<nvram type='file'><source file='/var/lib/x_VARS.fd'/>" + xml[end:]
    assert parse_domain(typed).nvram == "/var/lib/x_VARS.fd"
    assert parse_domain(rewrite_saved(typed, spec_for(xml))).nvram == "/clones/1/nvram.fd"
    block = xml[:start] + "<nvram type='block'><source dev='/dev/vg/vars'/>" + xml[end:]
    written = rewrite_saved(block, spec_for(xml))
    assert """<nvram type="file">\n      <source file="/clones/1/nvram.fd" />""" in written


def test_metadata_of_ours_is_put_in_once() -> None:
    for name in ("debian12", "i440fx", "nova"):
        xml = load(f"{name}.saved")
        spec = replace(spec_for(xml), metadata=MARK)
        made = rewrite_saved(rewrite_saved(xml, spec), spec)
        assert made.count("liveclone:clone") == 1
        assert ("libosinfo" in made) == (name == "debian12")
        assert "nova" not in made
        assert "backup" not in made
    with pytest.raises(Corrupt):
        rewrite_saved(xml, replace(spec, metadata="<a"))


def rewrite_device(text: str) -> str:
    """Return what becomes of a device of the headless machine."""
    xml = load("headless.saved").replace("</devices>", f"{text}</devices>")
    spec = replace(spec_for(xml), console_log="")
    before = set(rewrite_saved(load("headless.saved"), spec).splitlines())
    return "".join(line.strip() for line in rewrite_saved(xml, spec).splitlines() if line not in before)


@pytest.mark.parametrize(
    ("device", "made"),
    [
        ("<vsock model='virtio'><cid auto='no' address='7'/></vsock>", '<cid auto="yes" />'),
        (
            "<graphics type='spice' port='5930' tlsPort='5931' autoport='no'/>",
            '<graphics type="spice" autoport="yes" />',
        ),
        ("<graphics type='vnc' socket='/run/v.sock'/>", '<graphics type="vnc" port="-1" autoport="yes" />'),
        (
            "<graphics type='vnc'><listen type='socket' socket='/run/v.sock'/></graphics>",
            '<graphics type="vnc" port="-1" autoport="yes"><listen type="socket" /></graphics>',
        ),
        (
            "<graphics type='vnc'><listen type='network' network='lan' address='10.0.0.1'/></graphics>",
            '<graphics type="vnc" port="-1" autoport="yes"><listen type="network" network="lan" /></graphics>',
        ),
        ("<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>", "renderD128"),
        (
            "<serial type='unix'><source mode='bind' path='/run/s'/><target port='9'/></serial>",
            '<serial type="pty">',
        ),
        ("<parallel type='file'><source path='/tmp/p'/></parallel>", '<parallel type="pty" />'),
        ("<channel type='pty'><source path='/dev/pts/9'/></channel>", '<channel type="pty" />'),
        ("<channel type='spicevmc'><target type='virtio' name='s'/></channel>", '<channel type="spicevmc">'),
    ],
)
def test_where_ports_and_screens_lead(device: str, made: str) -> None:
    written = rewrite_device(device)
    assert made in written
    assert "/run/" not in written
    assert "/tmp/" not in written


def test_a_port_gets_the_socket_that_was_asked_for() -> None:
    xml = load("debian12.saved").replace("<channel type='unix'>", "<channel type='pty'>")
    spec = replace(spec_for(xml), channels={"org.qemu.guest_agent.0": "/clones/1/qga.sock"})
    (channel,) = parse_domain(rewrite_saved(xml, spec)).channels
    assert (channel.kind, channel.path) == ("unix", "/clones/1/qga.sock")


def test_a_disk_becomes_a_file() -> None:
    xml = load("debian12.saved")
    xml = xml.replace("<disk type='file' device='disk'>", "<disk type='block' device='disk'>", 1)
    xml = xml.replace("<source file='/var/lib/libvirt/images/debian12.qcow2'/>", "<source dev='/dev/vg/x'/>")
    disk = parse_domain(rewrite_saved(xml, spec_for(xml))).disks[0]
    assert (disk.source_type, disk.path, disk.format) == ("file", "/clones/1/vda.qcow2", "qcow2")


def test_an_empty_floppy_drive_needs_no_floppy() -> None:
    drive = "<disk type='file' device='floppy'><target dev='fda' bus='fdc'/>"
    xml = load("i440fx.saved").replace("device='floppy'", "device='disk'").replace("fda", "vdq")
    with_drive = xml.replace("</devices>", f"{drive}</disk></devices>")
    spec = spec_for(xml)
    assert 'device="floppy"' in rewrite_saved(with_drive, spec)
    with_floppy = xml.replace("</devices>", f"{drive}<source file='/x.vfd'/></disk></devices>")
    with pytest.raises(Refused, match="no fda of its own"):
        rewrite_saved(with_floppy, spec)


def test_what_else_told_which_machine_it_is_goes() -> None:
    xml = load("i440fx.saved").replace("<memory ", f"<hwuuid>{GENID}</hwuuid><memory ", 1)
    labels = "<label>svirt_t:s0:c1,c2</label><imagelabel>x</imagelabel><baselabel>svirt_t:s0</baselabel>"
    xml = xml.replace("</domain>", f"<seclabel type='dynamic' model='selinux'>{labels}</seclabel></domain>")
    made = rewrite_saved(xml, spec_for(xml))
    assert GENID not in made
    assert "c1,c2" not in made
    assert "imagelabel" not in made
    assert "<baselabel>svirt_t:s0</baselabel>" in made


def test_static_labels_stay() -> None:
    label = "<seclabel type='static' model='dac' relabel='yes'><label>+64055:+109</label></seclabel>"
    xml = load("i440fx.saved").replace("</domain>", f"{label}</domain>")
    assert "+64055:+109" in rewrite_saved(xml, spec_for(xml))


def test_a_snapshot_names_every_disk() -> None:
    assert (
        render_snapshot({"vda": "/o/a&b.qcow2"}, "/o/memory", ["sda"])
        == """\
<domainsnapshot>
  <memory snapshot="external" file="/o/memory" />
  <disks>
    <disk name="vda" snapshot="external" type="file">
      <driver type="qcow2" />
      <source file="/o/a&amp;b.qcow2" />
    </disk>
    <disk name="sda" snapshot="no" />
  </disks>
</domainsnapshot>
"""
    )
    assert '<memory snapshot="no" />' in render_snapshot({"vda": "/x"})


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_alone_is_another(name: str) -> None:
    xml = load(name)
    for disk in parse_domain(xml).disks:
        if disk.source_type != "file" or not disk.path:
            continue
        changed = with_disk(xml, disk.target, "/srv/other & more.raw", "raw")
        found = {one.target: one for one in parse_domain(changed).disks}
        expected = {one.target: one for one in parse_domain(xml).disks}
        assert found == expected | {disk.target: replace(disk, path="/srv/other & more.raw", format="raw")}
        back = with_disk(changed, disk.target, disk.path, disk.format)
        assert back == with_disk(xml, disk.target, disk.path, disk.format)
        assert parse_domain(back) == parse_domain(xml)


if __name__ == "__main__":
    for machine in NAMES:
        for made_kind in MADE:
            (DOMAINS / f"{machine}.{made_kind}.diff").write_text(differences(machine, made_kind))
