"""A libvirt domain that is hurt again and again: adopted once, brought back to its first moment in a second.

boot ── save image + copy of its disk ──> revive: the same domain, its guest as it was then
     ── adopt ──> machine                 check:  all that its owner must find as it was, and that nothing is left over
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from liveclone import trace
from liveclone.drivers.libvirt import registry, tickets
from liveclone.engine import adopt, remove
from liveclone.engine.context import open_context
from liveclone.errors import LivecloneError
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from liveclone.model.snapshot import Snapshot
from tests.fault.rooms import Room
from tests.libvirt_domains import Shape, make_domain, wait_for_agent
from tests.libvirtd import Libvirtd
from tests.machines import Lab, is_alive

NAME, ADDRESS = "shop", "10.9.8.7/24"
ADDRESS_WAIT_S = 0.2  # nobody gives a clone's card one
RAM_MIB = 192
RUNNING, INACTIVE = 1, 2  # virDomainState; VIR_DOMAIN_XML_INACTIVE


class Shop:
    """The domain, and the home that knows it. Close it: everything goes."""

    def __init__(self, home: Path, hot: Room, disk: Room, libvirtd: Libvirtd, image: Image) -> None:
        self.libvirtd, self.hot_room, self.disk_room = libvirtd, hot, disk
        self.disks = disks = disk.folder
        self.lab = Lab(home, hot.folder / "home", {})
        self.lab.settings = replace(
            self.lab.settings, driver="libvirt", libvirt_uri=libvirtd.uri, network=NetworkKind.LIBVIRT
        )
        self.lab.ctx = open_context(self.lab.settings)
        self._save, self._disk_then = disks.with_name("then.save"), disks.with_name("then.qcow2")
        self.kept: set[str] = set()  # snapshots that several tests use
        self.connection: Any = libvirt.open(libvirtd.uri)
        shape = Shape(genid=True, ram_mib=RAM_MIB)
        make_domain(self.connection, image, disks, shape, NAME)
        wait_for_agent(self.domain)
        self.machine: Machine = self.lab.wait(adopt.adopt(self.lab.ctx, NAME))
        self.shell(f"ip addr add {ADDRESS} dev eth0; ip link set eth0 up; echo then > /root/note; sync")
        self.disk = disks / f"{NAME}-0.qcow2"
        self.domain.save(str(self._save))
        shutil.copyfile(self.disk, self._disk_then)
        self.definition = ""
        self.connection.restore(str(self._save))
        self._begin()

    def connect(self) -> None:
        """Connect to libvirtd, which may be another one than before."""
        with suppress(libvirt.libvirtError):
            self.connection.close()
        self.connection = libvirt.open(self.libvirtd.uri)

    @property
    def domain(self) -> Any:
        return self.connection.lookupByName(NAME)

    def _begin(self) -> None:
        wait_for_agent(self.domain)
        self.definition = self.definition or self.domain.XMLDesc(INACTIVE)
        self.before = self.look()

    def revive(self) -> None:
        """Bring the domain back as it was at first, whatever it has come to."""
        with suppress(libvirt.libvirtError):
            self.domain.destroy()
        self.connection.defineXML(self.definition)
        for path in self.disks.iterdir():
            path.unlink()
        shutil.copyfile(self._disk_then, self.disk)
        self.connection.restore(str(self._save))
        self._begin()

    def shell(self, script: str) -> str:
        return self.lab.shell(self.lab.wait(adopt.look_again(self.lab.ctx, self.machine)), script)

    def look(self) -> dict[str, Any]:
        """Return all of the domain that its owner would not like to see changed."""
        live = ElementTree.fromstring(self.domain.XMLDesc())
        return {
            "state": self.domain.state()[0],
            "pid": registry.find_process(self.domain.UUIDString()),
            "disks": [source.get("file") for source in live.iterfind("devices/disk/source")],
            "definition": self.domain.XMLDesc(INACTIVE),
            "files": sorted(path.name for path in self.disks.iterdir()),
            "nics": [
                ElementTree.tostring(found)
                for nic in live.iterfind("devices/interface")
                for found in (nic.find("mac"), nic.find("address"))
                if found is not None
            ],
            "snapshots": self.domain.snapshotNum(),
            "addresses": self.shell("ip -br -4 addr show dev eth0 | tr -s ' '"),
        }

    def check(self) -> None:
        """Fail unless the domain runs as it did, in the process it had."""
        now = self.look()
        assert {key: now[key] for key in now if now[key] != self.before[key]} == {}
        assert self.before["state"] == RUNNING
        assert ADDRESS in self.before["addresses"]

    def fails_to_snapshot(self) -> LivecloneError:
        """Ask for a snapshot, and return why there is none."""
        try:
            taken = self.lab.snapshot(self.machine)
        except LivecloneError as error:
            return error
        raise AssertionError(f"{taken.name} was taken")

    def find_left(self) -> list[str]:
        """Return what is there besides the domain and the snapshots that are listed."""
        ctx = self.lab.ctx
        machines, snapshots = ctx.machines.list(), ctx.snapshots.list()
        left = [f"domain {one.name()}" for one in self.connection.listAllDomains() if one.name() != NAME]
        left += [f"process {pid}: {line[:120]}" for pid, line in self.lab.qemus().items() if is_alive(pid)]
        left += [f"machine {one.name}" for one in machines if one.id != self.machine.id]
        left += [str(path) for path in ctx.layout.machines.iterdir() if path.name != self.machine.id]
        left += [f"journal of {one.name}" for one in machines if ctx.journal(one.id).read() is not None]
        known = {one.id for one in snapshots}
        left += [str(path) for path in ctx.layout.snapshots.iterdir() if path.name not in known]
        images = {one.hot.path for one in snapshots if one.hot is not None}
        left += [str(path) for path in ctx.layout.hot.iterdir() if str(path) not in images]
        left += [str(path) for path in self.libvirtd.memory.glob("*") if path.name[-len(NAME) :] != NAME]
        left += [str(path) for path in find_tickets(ctx.layout.hot)]
        return left

    def clear(self) -> None:
        """Remove the snapshots there are, and fail for what is left then."""
        self.lab.snapshots_sealed()
        left = self.find_left()
        for taken in self.lab.ctx.snapshots.list():
            if taken.id not in self.kept:
                self.lab.remove_snapshot(taken)
        left += self.find_left()
        assert not left, "left over:\n  " + "\n  ".join(left)

    def clone(self, taken: Snapshot, name: str = "doomed") -> registry.DomainRef:
        """Start a clone, look whether its guest is there, and remove it; returns how it had come up."""
        clone = self.lab.clone(taken, names=[name])
        ref = registry.read(self.lab.ctx.layout.machine(clone.id))
        assert ref is not None
        assert self.lab.shell(clone, "cat /root/note") == "then"
        self.lab.remove(clone)
        return ref

    def is_as_before(self) -> bool:
        """Tell whether the domain runs in the process it had."""
        try:
            runs = self.domain.state()[0] == RUNNING and is_alive(self.before["pid"].pid)
            return runs and bool(self.domain.XMLDesc(INACTIVE) == self.before["definition"])
        except libvirt.libvirtError:
            return False

    def close(self) -> None:
        self.lab.wait(remove.remove_machine(self.lab.ctx, self.machine.id, force=True))
        self.lab.close()
        with suppress(libvirt.libvirtError):
            self.domain.destroy()
        self.connection.close()


def find_tickets(hot: Path) -> Iterator[Path]:
    """Return the tickets, and what became of them, that name an image in a folder."""
    for path in tickets.FOLDER.glob("*"):
        with suppress(OSError):
            if f'"{hot}/' in path.read_text():
                yield path


@contextmanager
def no_libvirtd(shop: Shop) -> Iterator[None]:
    """Kill libvirtd; on the way out there is a new one, which finds what the old one has left."""
    shop.libvirtd.kill()
    try:
        yield
    finally:
        shop.libvirtd.restart()
        shop.connect()


@contextmanager
def doing_at(point: str, what: Callable[[], object]) -> Iterator[list[LivecloneError]]:
    """Let something happen when the operation in the block comes to a point; the error it ends with is in the list."""
    done: list[str] = []
    errors: list[LivecloneError] = []

    def at(here: str) -> None:
        if here == point and not done:
            done.append(here)
            what()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "at", at)
        try:
            yield errors
        except LivecloneError as error:
            errors.append(error)
    assert done, f"{point} was not passed"
