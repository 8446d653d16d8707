"""QEMU runs as a user of its own, and libvirt gives files away to it: as on any host that nobody has configured."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveclone.drivers.libvirt import hook_install, registry
from liveclone.engine import adopt
from liveclone.engine import settings as engine_settings
from liveclone.engine.context import open_context
from liveclone.errors import Refused
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from tests.conftest import PREFIX, Needs
from tests.libvirt_domains import Shape, make_domain, wait_for_agent
from tests.libvirtd import Libvirtd
from tests.machines import Lab

USER = "libvirt-qemu"
IMAGES = Path("/var/lib/libvirt/images")
HOME = Path("/var/lib/libvirt/liveclone")


@pytest.fixture(scope="module")
def libvirt_of_users(
    needs: Needs, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Libvirtd]:
    needs("libvirtd", "virsh", "qemu-system-x86_64", root=True)
    try:
        pwd.getpwnam(USER)
    except KeyError:
        pytest.skip(f"no user {USER}: libvirt is not the distribution's")
    settings = engine_settings.read()
    hot = settings.hot.with_name("users")
    for above in (hot, *hot.parents):
        if above.name.startswith(PREFIX):
            above.chmod(0o711)
    folder = settings.home.with_name("libvirt-users")
    hooks = folder / "etc" / "hooks"
    hooks.mkdir(parents=True)
    hook_install.install(hooks, images=[hot])
    with Libvirtd(
        folder, hot=hot.with_name("libvirt-users"), cache=cache_folder / "libvirt-users", user_of_its_own=True
    ) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def home(libvirt_of_users: Libvirtd, images: dict[str, Image]) -> Iterator[Lab]:
    """A home whose machines are this libvirt's."""
    lab = Lab(HOME, engine_settings.read().hot.with_name("users"), images)
    lab.settings = replace(
        lab.settings, driver="libvirt", libvirt_uri=libvirt_of_users.uri, network=NetworkKind.LIBVIRT
    )
    lab.ctx = open_context(lab.settings)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def domain(libvirt_of_users: Libvirtd, images: dict[str, Image]) -> Iterator[Any]:
    """A running domain whose disk stands on a template, and whose files are where QEMU's user finds them."""
    libvirt = pytest.importorskip("libvirt")
    light = images["light"]
    template, kernel, initrd = (
        str(shutil.copyfile(path, IMAGES / Path(path).name))
        for path in (light.disk, light.boot.kernel, light.boot.initrd)
    )
    light = light.replace(disk=template, boot=light.boot.replace(kernel=kernel, initrd=initrd))
    connection = libvirt.open(libvirt_of_users.uri)
    domain = make_domain(connection, light, IMAGES, Shape(disks=2), "shop")
    wait_for_agent(domain)
    yield domain
    if domain.isActive():
        domain.destroy()
    domain.undefine()
    connection.close()


def owners(folder: Path) -> dict[str, tuple[str, str]]:
    """Return owner and mode of each file in a folder."""
    return {
        path.name: (pwd.getpwuid(path.stat().st_uid).pw_name, stat.filemode(path.stat().st_mode))
        for path in sorted(folder.iterdir())
    }


def user_of(machine: Machine) -> str:
    """Return the user that a machine's QEMU runs as."""
    assert machine.process is not None
    return pwd.getpwuid(os.stat(f"/proc/{machine.process.pid}").st_uid).pw_name


def test_a_domain_of_an_ordinary_host_is_cloned_and_its_files_stay_its_own(home: Lab, domain: Any) -> None:
    libvirt = pytest.importorskip("libvirt")
    before = owners(IMAGES)
    assert before["shop-0.qcow2"][0] == USER
    machine = home.wait(adopt.adopt(home.ctx, "shop"))
    home.shell(machine, "echo captured > /root/note; sync")
    snapshot = home.snapshot(machine)
    assert owners(IMAGES) == before
    home.shell(machine, "echo later > /root/note; sync")

    first = home.clone(snapshot)
    second = home.clone(snapshot)
    frozen, hot = home.ctx.layout.snapshot(snapshot.id), home.ctx.layout.hot_image(snapshot.id)
    for clone in (first, second):
        ref = registry.read(home.ctx.layout.machine(clone.id))
        assert ref is not None and ref.why_full == ""
        assert user_of(clone) == user_of(machine) == USER
        assert home.shell(clone, "cat /root/note") == "captured"
        home.shell(clone, "echo mine > /root/note; sync; cat /root/note")
    # What the clones share is root's still, and nobody but QEMU's user may open it; keys and evidence not even that one.
    for name, (owner, mode) in owners(frozen).items():
        opened = "r-" if name.startswith("disk") else "--"
        if name not in ("evidence", "seal.log", "recheck.log"):
            assert (owner, mode[4:]) == ("root", f"{opened}----"), name
    assert stat.filemode(hot.stat().st_mode)[4:] == "rw----" and hot.stat().st_uid == 0

    # Its owner goes on with a clone as with any domain: an overlay, a reboot.
    connection = domain.connect()
    clone = connection.lookupByName(first.name)
    disks = "".join(
        f"<disk name='{disk.target}' snapshot='external'><source file='{IMAGES}/{disk.target}.top'/></disk>"
        for disk in first.disks
    )
    clone.snapshotCreateXML(
        f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )
    home.shell(first, "echo more > /root/note; sync")
    clone.destroy()
    clone.create()
    wait_for_agent(clone)
    assert home.shell(first, "cat /root/note") == "more"

    home.remove(first, second)
    for path in IMAGES.glob("*.top"):
        path.unlink()
    third = home.clone(snapshot)  # and the snapshot is not taken for damaged
    home.remove(third)
    assert home.shell(machine, "cat /root/note") == "later"
    assert owners(IMAGES) == before
    home.remove(machine)
    domain.destroy()
    left = owners(IMAGES)
    assert left["shop-0.qcow2"][0] == left["shop-1.qcow2"][0] == "root"
    domain.create()
    wait_for_agent(domain)


def test_a_folder_that_qemu_cannot_come_to_is_named_before_anything_is_touched(
    home: Lab, domain: Any, tmp_path: Path
) -> None:
    barred = tmp_path / "barred"
    barred.mkdir(mode=0o700)
    ctx = open_context(replace(home.settings, home=barred / "home"))
    with pytest.raises(Refused) as caught:
        home.wait(adopt.adopt(ctx, "shop"))
    assert caught.value.code == "qemu-cannot-reach"
    assert ctx.machines.list() == []
    assert barred.stat().st_mode & 0o777 == 0o700
