"""A libvirt domain that nobody started with cloning in mind: adopted, captured while it runs, cloned."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from liveclone.drivers.libvirt import constant as drivers_constant
from liveclone.drivers.libvirt import registry
from liveclone.engine import adopt, recheck, run, wiring
from liveclone.engine import settings as engine_settings
from liveclone.engine.context import open_context
from liveclone.errors import Corrupt, Refused, Unsupported
from liveclone.host import disk_layers
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from liveclone.model.snapshot import Snapshot
from tests.libvirt_domains import Shape, make_domain, wait_for_agent
from tests.libvirtd import Libvirtd
from tests.machines import LIGHT_RAM, Lab, Operation

ADDRESS = "10.9.8.7/24"
ADDRESS_WAIT_S = 0.2  # nobody gives these guests' cards one
INACTIVE = 2  # VIR_DOMAIN_XML_INACTIVE


@dataclass(frozen=True)
class Story:
    """A domain, what it was before, and its snapshot."""

    domain: Any
    machine: Machine
    snapshot: Snapshot
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module")
def home(
    libvirtd: Libvirtd, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A home whose machines are libvirt's."""
    folder = tmp_path_factory.mktemp("home")
    hot = Path(engine_settings.read().hot).with_name("libvirt-home")
    lab = Lab(folder, hot, images)
    lab.settings = replace(
        lab.settings, driver="libvirt", libvirt_uri=libvirtd.uri, network=NetworkKind.LIBVIRT
    )
    lab.ctx = open_context(lab.settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "ADDRESS_WAIT_S", ADDRESS_WAIT_S)
        yield lab
        lab.close()


@pytest.fixture(scope="module", params=["q35-qcow2", "pc-raw-two-disks"])
def story(
    request: pytest.FixtureRequest,
    home: Lab,
    libvirtd: Libvirtd,
    images: dict[str, Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    libvirt = pytest.importorskip("libvirt")
    connection = libvirt.open(libvirtd.uri)
    shape = (
        Shape(genid=True) if request.param == "q35-qcow2" else Shape(machine="pc", disk_format="raw", disks=2)
    )
    disks = tmp_path_factory.mktemp("disks")
    domain = make_domain(connection, images["light"], disks, replace(shape, nics=2), "shop")
    wait_for_agent(domain)
    untouched = domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    machine = home.wait(adopt.adopt(home.ctx, "shop"))
    assert (domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == untouched
    home.shell(
        machine, f"ip addr add {ADDRESS} dev eth0; ip link set eth0 up; echo captured > /root/note; sync"
    )
    before = look(home, domain, machine, disks)
    taken = home.snapshot(machine)
    after = look(home, domain, machine, disks)
    home.shell(machine, "echo later > /root/note; sync")
    yield Story(domain, machine, taken, before, after)
    home.remove(machine)
    assert domain.isActive()
    domain.destroy()
    domain.undefine()
    connection.close()


def look(home: Lab, domain: Any, machine: Machine, disks: Path) -> dict[str, Any]:
    """Return all of a domain that its owner would not like to see changed."""
    live = ElementTree.fromstring(domain.XMLDesc())
    return {
        "uuid": domain.UUIDString(),
        "pid": home.reload(machine).process,
        "disks": [source.get("file") for source in live.iterfind("devices/disk/source")],
        "files": sorted(path.name for path in disks.iterdir()),
        "nics": [
            ElementTree.tostring(found)
            for nic in live.iterfind("devices/interface")
            for found in (nic.find("mac"), nic.find("address"))
            if found is not None
        ],
        "snapshots": domain.snapshotNum(),
        "definition": domain.XMLDesc(2),
        "addresses": home.shell(machine, "ip -br -4 addr show dev eth0"),
    }


def test_the_source_is_what_it_was(story: Story) -> None:
    assert ADDRESS in story.before["addresses"]
    assert len(story.before["nics"]) == 4
    assert story.after == story.before
    assert story.domain.state()[0] == 1


def test_clones_are_ordinary_domains_of_their_own(story: Story, home: Lab, libvirtd: Libvirtd) -> None:
    clones = home.clones(story.snapshot, 2)
    domains = [story.domain.connect().lookupByName(clone.name) for clone in clones]
    for clone, domain in zip(clones, domains, strict=True):
        folder = home.ctx.layout.machine(clone.id)
        ref = registry.read(folder)
        assert ref is not None and ref.why_full == ""
        assert home.shell(clone, "cat /root/note") == "captured"
        assert ADDRESS not in home.shell(clone, "ip -br -4 addr")
        definition = domain.XMLDesc(2)
        assert domain.isPersistent() and "memoryBacking" not in definition
        macs = [
            mac.get("address", "")
            for mac in ElementTree.fromstring(definition).iterfind("devices/interface/mac")
        ]
        assert sorted(macs) == sorted(nic.mac for nic in clone.nics)
        assert (
            len({nic.mac for nic in clone.nics} | {nic.mac for nic in home.reload(story.machine).nics}) == 4
        )
    ids = {home.shell(one, "cat /etc/machine-id") for one in (story.machine, *clones)}
    assert len(ids) == 3
    home.shell(clones[0], "echo mine > /root/note; sync")
    assert home.shell(clones[1], "cat /root/note") == "captured"
    assert home.shell(story.machine, "cat /root/note") == "later"
    home.remove(*clones)
    assert story.domain.connect().numOfDefinedDomains() == 0
    assert story.domain.connect().numOfDomains() == 1


def test_a_clone_boots_again_by_libvirts_own_means(story: Story, home: Lab) -> None:
    clone = home.clone(story.snapshot)
    domain = story.domain.connect().lookupByName(clone.name)
    home.shell(clone, "echo kept > /root/note; sync")
    domain.destroy()
    domain.create()
    wait_for_agent(domain)
    assert home.shell(clone, "cat /root/note") == "kept"
    home.remove(clone)


@pytest.mark.parametrize("story", ["pc-raw-two-disks"], indirect=True)
def test_a_clone_with_two_disks_is_a_source_too(
    story: Story, home: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = home.clone(story.snapshot)
    domain = story.domain.connect().lookupByName(clone.name)
    folder, own = home.ctx.layout.machine(clone.id), [disk.path for disk in clone.disks]
    assert sorted(path.name for path in folder.glob("disk*")) == ["disk-vdb.qcow2", "disk.qcow2"]

    # Killed when both disks had got their next layers: what was written to these is kept.
    with Operation(home, "snapshot", stops=["stream.resumed"], machine=clone.id) as operation:
        operation.reach("stream.resumed")
        assert not set(disks_of(domain)) & set(own)
        write(home, clone, "behind the freeze")
        operation.kill()
    assert home.repair() == [clone.name]
    assert disks_of(domain) == own
    assert sorted(path.name for path in folder.glob("disk*")) == ["disk-vdb.qcow2", "disk.qcow2"]
    assert read(home, clone) == ["behind the freeze"] * 2

    write(home, clone, "captured")
    taken = home.snapshot(clone, "of-a-clone", wait_sealed=True)
    assert [disk.target for disk in taken.disks] == ["vda", "vdb"]
    assert taken.layers == clone.layers
    assert disks_of(domain) == [disk.path for disk in home.reload(clone).disks] != own
    write(home, clone, "not captured")
    constant = home.clone(taken)
    with monkeypatch.context() as patch:
        patch.setattr(drivers_constant, "find_obstacle", lambda uri, image: "asked for")
        full = home.clone(taken)
    for again, why in ((constant, ""), (full, "asked for")):
        ref = registry.read(home.ctx.layout.machine(again.id))
        assert ref is not None and ref.why_full == why
        assert read(home, again) == ["captured"] * 2
        write(home, again, "mine")

    # Both frozen layers stay for as long as somebody stands on them, and no longer.
    home.remove_snapshot(taken)
    frozen = home.ctx.layout.snapshot(taken.id)
    assert sorted(path.name for path in frozen.iterdir()) == ["disk-vda.qcow2", "disk-vdb.qcow2"]
    home.remove(full)

    # Killed again, and then the domain ends too: it starts from the disks that it had, with what was written last.
    own = disks_of(domain)
    with Operation(home, "snapshot", stops=["stream.resumed"], machine=clone.id) as operation:
        operation.reach("stream.resumed")
        write(home, clone, "later")
        operation.kill()
    domain.destroy()
    assert home.repair() == [clone.name]
    assert disks_of(domain, INACTIVE) == [disk.path for disk in home.reload(clone).disks] == own
    domain.create()
    wait_for_agent(domain)
    assert read(home, clone) == ["later"] * 2
    home.remove(clone)
    assert read(home, constant) == ["mine"] * 2
    home.remove(constant)
    assert not frozen.exists()


def disks_of(domain: Any, flags: int = 0) -> list[str]:
    """Return the top layer of each disk of a domain, as it runs or as it is defined."""
    sources = ElementTree.fromstring(domain.XMLDesc(flags)).iterfind("devices/disk/source")
    return [source.get("file", "") for source in sources]


def write(home: Lab, machine: Machine, text: str) -> None:
    """Write a line to each of two disks."""
    home.shell(
        machine, f"echo {text} > /root/note; sync; echo {text} | dd of=/dev/vdb conv=sync,fsync status=none"
    )


def read(home: Lab, machine: Machine) -> list[str]:
    """Return the lines, from the disks themselves."""
    direct = "bs=4096 count=1 iflag=direct status=none"
    script = f"dd if=/root/note {direct}; dd if=/dev/vdb {direct} | head -n 1"
    return home.shell(machine, script).splitlines()


def test_an_image_that_was_written_starts_no_more_clones(story: Story, home: Lab) -> None:
    """As a QEMU could that a guest has taken over: libvirt's opens the image for writing."""
    taken = home.snapshot(home.reload(story.machine), wait_sealed=True)
    assert taken.hot is not None
    home.remove(home.clone(taken))
    assert recheck.check(home.ctx, taken.id)
    image = Path(taken.hot.path)
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        found = next(at for at in range(0, len(pages), 4096) if pages[at])
        pages[found] ^= 1
    (result,) = home.results(taken)  # the stamp tells nothing, and the guest may run with such a byte or not
    if result.machine is not None:
        home.remove(result.machine)
    recheck.check(home.ctx, taken.id)
    with pytest.raises(Corrupt) as caught:
        home.clone(taken)
    assert "was written to after" in caught.value.seen
    home.remove_snapshot(taken)


@pytest.mark.parametrize("story", ["pc-raw-two-disks"], indirect=True)
def test_an_overlay_is_kept_if_asked(story: Story, home: Lab) -> None:
    domain, own = story.domain, [Path(path) for path in disks_of(story.domain)]
    write(home, story.machine, "captured")
    taken = home.snapshot(story.machine, "kept", keep_overlay=True)
    layers = [path.with_name(f"{path.stem}.liveclone-{taken.id}.qcow2") for path in own]
    assert disks_of(domain) == disks_of(domain, INACTIVE) == [str(path) for path in layers]
    assert [disk_layers.find_layers(path)[1:] for path in layers] == [[path] for path in own]
    then = [path.stat().st_mtime_ns for path in own]
    write(home, story.machine, "later")
    clone = home.clone(taken)
    assert read(home, clone) == ["captured"] * 2
    below = [path for disk in clone.disks for path in disk_layers.find_layers(Path(disk.path))]
    assert all(path.is_relative_to(home.ctx.layout.home) for path in below)
    home.remove(clone)

    # Of what is ours it needs nothing.
    home.remove_snapshot(taken)
    domain.destroy()
    domain.create()
    wait_for_agent(domain)
    assert read(home, story.machine) == ["later"] * 2
    assert disks_of(domain) == [str(path) for path in layers]
    assert [path.stat().st_mtime_ns for path in own] == then

    # And the next snapshot, without it, leaves the domain on the overlays.
    home.remove_snapshot(home.snapshot(story.machine))
    assert disks_of(domain) == disks_of(domain, INACTIVE) == [str(path) for path in layers]
    assert sorted(own[0].parent.iterdir()) == sorted([*own, *layers])


def test_a_domain_is_adopted_once(story: Story, home: Lab) -> None:
    with pytest.raises(Refused) as caught:
        home.wait(adopt.adopt(home.ctx, "shop", "again"))
    assert caught.value.code == "already-adopted"
    assert json.dumps(caught.value.fields())


def test_machines_of_our_own_are_domains_too(home: Lab, libvirt_connection: Any) -> None:
    """Run, captured, cloned; the clone stopped, started and captured itself."""
    request = run.Request(image="light", name="own", ram_bytes=LIGHT_RAM, network=NetworkKind.NONE)
    own = home.wait(run.run(home.ctx, request))
    home.shell(own, "echo own > /root/note; sync")
    clone = home.clone(home.snapshot(own, "first"))
    assert home.shell(clone, "cat /root/note") == "own"
    home.shell(clone, "echo clone > /root/note; sync")
    home.wait(run.stop(home.ctx, clone.id, force=True))
    clone = home.wait(run.start(home.ctx, clone.id))
    assert home.shell(clone, "cat /root/note") == "clone"
    again = home.clone(home.snapshot(clone, "second"))
    assert home.shell(again, "cat /root/note") == "clone"
    assert len({home.shell(one, "cat /etc/machine-id") for one in (own, clone, again)}) == 3
    home.remove(own, clone, again)
    names = {domain.name() for domain in libvirt_connection.listAllDomains()}
    assert not names & {"own", clone.name, again.name}
    with pytest.raises(Unsupported):
        home.wait(run.run(home.ctx, replace(request, network=NetworkKind.USER)))
