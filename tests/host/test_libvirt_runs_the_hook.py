"""The hook in a real libvirt, with domains that stand still before their first instruction."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveclone.drivers.libvirt import hook_install, tickets
from liveclone.units import MIB
from tests.conftest import Needs
from tests.libvirtd import Libvirtd

pytestmark = pytest.mark.machine  # QEMUs without a guest

libvirt = pytest.importorskip("libvirt")

RAM_BYTES = 16 * MIB


@dataclass
class Host:
    """A libvirtd with our hook, and two folders for images: on the file system of its RAM files, and on another."""

    daemon: Libvirtd
    near: Path
    far: Path
    counter: Path

    def install(self) -> hook_install.HookStatus:
        return hook_install.install(self.daemon.hooks, images=[self.near, self.far], tickets=self.counter)

    def add_script(self, name: str, text: str) -> None:
        path = self.daemon.hooks / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def connect(self) -> Any:
        return libvirt.open(self.daemon.uri)

    def start(self, name: str, ident: str = "") -> Any:
        return self.connect().createXML(render_xml(name, ident), libvirt.VIR_DOMAIN_START_PAUSED)

    def issue(self, ident: str, name: str, folder: Path) -> Path:
        """Make a memory image for a domain, and its ticket; return the image."""
        image = folder / f"{name}.mem"
        image.touch(0o600)
        with image.open("r+b") as file:
            file.write(b"the first page")
            file.truncate(RAM_BYTES)
        tickets.issue(self.counter, uuid=ident, name=name, image=image, memory_dir=self.daemon.memory)
        return image


def render_xml(name: str, ident: str = "") -> str:
    return f"""
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{ident or uuid.uuid4()}</uuid>
  <memory unit='MiB'>{RAM_BYTES // MIB}</memory>
  <memoryBacking><source type='file'/><access mode='private'/></memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
</domain>
"""


def is_mapped(name: str, image: Path) -> bool:
    """Tell whether a domain's QEMU has the image mapped, and privately."""
    pid = Path("/run/libvirt/qemu", f"{name}.pid").read_text().strip()
    maps = (line.split() for line in Path("/proc", pid, "maps").read_text().splitlines())
    inode = str(image.stat().st_ino)
    return any(words[4] == inode and words[1] == "rw-p" for words in maps)


@pytest.fixture(scope="module")
def host(needs: Needs, cache_folder: Path) -> Iterator[Host]:
    """One libvirtd for all tests here; it found our hook when it started."""
    needs("libvirtd", "qemu-system-x86_64", root=True)
    run, hot = (Path(os.environ[name]).parent for name in ("LIVECLONE_HOME", "LIVECLONE_HOT"))
    daemon = Libvirtd(run / "libvirtd", hot=hot / "libvirtd", cache=cache_folder / "libvirt")
    host = Host(daemon, near=hot / "near", far=run / "far", counter=run / "tickets")
    for folder in (host.near, host.far, daemon.hooks):
        folder.mkdir(mode=0o700, parents=True)
    try:
        host.install()
        with daemon:
            yield host
    finally:
        for folder in (host.near, host.far, host.counter):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _tidy(host: Host) -> Iterator[None]:
    """Nothing of one test is there in the next one."""
    yield
    for domain in host.connect().listAllDomains():
        domain.destroy()
    for path in (*host.near.iterdir(), *host.far.iterdir()):
        path.unlink()
    for path in host.daemon.hooks.rglob("*"):
        if path.is_file() and path.name != hook_install.NAME:
            path.unlink()


def test_a_domain_without_a_ticket_has_ram_of_its_own(host: Host) -> None:
    host.start("quiet")  # while there is no ticket at all, and then one for another domain
    ident = str(uuid.uuid4())
    image = host.issue(ident, "ours", host.near)
    domain = host.start("stranger")
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    assert not is_mapped("stranger", image)
    assert tickets.outcome(host.counter, ident) is None


@pytest.mark.parametrize("how", ["hard", "symbolic"])
def test_a_domain_with_a_ticket_has_the_image_as_its_ram(host: Host, how: str) -> None:
    if how == "symbolic" and host.near.stat().st_dev == host.far.stat().st_dev:
        pytest.skip("all folders of this run are on one file system")
    ident = str(uuid.uuid4())
    image = host.issue(ident, "ours", host.near if how == "hard" else host.far)
    domain = host.start("ours", ident)
    assert is_mapped("ours", image)
    outcome = tickets.outcome(host.counter, ident)
    assert outcome is not None and outcome.how == how
    link = Path(outcome.link)
    assert link.parent.parent == host.daemon.memory
    assert link.samefile(image)
    domain.destroy()
    assert not os.path.lexists(link)  # libvirt's own tidying up
    assert image.read_bytes()[:14] == b"the first page"
    assert (image.stat().st_size, image.stat().st_nlink) == (RAM_BYTES, 1)


def test_a_long_name(host: Host) -> None:
    ident, name = str(uuid.uuid4()), "a-name-that-libvirt-cuts-" + 6 * "as-it-is-long-"
    image = host.issue(ident, name, host.near)
    host.start(name, ident)
    assert is_mapped(name, image)


def test_at_a_restore_too(host: Host, tmp_path: Path) -> None:
    ident = str(uuid.uuid4())
    host.start("ours", ident).save(str(tmp_path / "saved"))
    image = host.issue(ident, "ours", host.near)
    host.connect().restoreFlags(str(tmp_path / "saved"), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
    assert is_mapped("ours", image)
    outcome = tickets.outcome(host.counter, ident)
    assert outcome is not None and outcome.done


def test_a_ticket_that_cannot_be_honoured_refuses_this_start_alone(host: Host) -> None:
    ident = str(uuid.uuid4())
    host.issue(ident, "ours", host.near).chmod(0o606)
    with pytest.raises(libvirt.libvirtError, match="everybody may write"):
        host.start("ours", ident)
    outcome = tickets.outcome(host.counter, ident)
    assert outcome is not None and "everybody may write" in outcome.reason
    host.start("stranger")
    host.start("ours", ident)  # the ticket is spent


@pytest.mark.parametrize("name", ["qemu", "qemu.d/another", "qemu.d/zebra"])
def test_a_script_of_somebody_else_that_fails_is_not_our_business(host: Host, name: str) -> None:
    ident = str(uuid.uuid4())
    image = host.issue(ident, "ours", host.near)
    host.add_script(name, '[ "$2" != start ]')
    with pytest.raises(libvirt.libvirtError, match="Hook script execution failed"):
        host.start("ours", ident)
    (host.daemon.hooks / name).unlink()
    assert image.stat().st_nlink == 1
    tickets.issue(host.counter, uuid=ident, name="ours", image=image, memory_dir=host.daemon.memory)
    host.start("ours", ident)
    assert is_mapped("ours", image)


def test_a_script_that_rewrites_domains_is_not_disturbed(host: Host, tmp_path: Path) -> None:
    """At `restore` libvirt takes what a script prints as the domain; ours prints nothing."""
    host.start("plain").save(str(tmp_path / "saved"))
    rewrite = "s,<currentMemory,<title>rewritten</title><currentMemory,"
    for name in ("another", "zebra"):
        host.add_script(f"qemu.d/{name}", f'if [ "$2" = restore ]; then sed "{rewrite}"; fi')
        host.connect().restoreFlags(str(tmp_path / "saved"), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        domain = host.connect().lookupByName("plain")
        assert "<title>rewritten</title>" in domain.XMLDesc()
        domain.destroy()
        (host.daemon.hooks / "qemu.d" / name).unlink()


def test_libvirt_notices_a_first_hook_when_it_is_told_to_reload(host: Host, tmp_path: Path) -> None:
    """What `install-hook` tells its user."""
    hook_install.remove(host.daemon.hooks)
    host.daemon.restart()
    assert not host.install().noticed
    ident = str(uuid.uuid4())
    image = host.issue(ident, "ours", host.near)
    host.start("ours", ident).destroy()
    assert tickets.outcome(host.counter, ident) is None
    os.mkfifo(tmp_path / "told")
    host.add_script(
        "daemon", f'[ "$2" = reload ] && echo "$2" > {tmp_path}/told'
    )  # called when it has looked again
    os.kill(host.daemon.pid, signal.SIGHUP)
    assert (tmp_path / "told").read_text() == "reload\n"
    host.start("ours", ident)
    assert is_mapped("ours", image)
