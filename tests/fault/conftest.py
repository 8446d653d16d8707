"""A home of their own for machines that are going to be hurt, and a source that can hand over again and again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from liveclone.engine import wiring
from liveclone.host import process
from liveclone.model.image import Image
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.snapshot import Snapshot
from liveclone.units import MIB
from tests.machines import Lab
from tests.vm.conftest import images

if TYPE_CHECKING:
    from tests.fault.domains import Shop
    from tests.libvirtd import Libvirtd

__all__ = ["images"]


@pytest.fixture(scope="session")
def lab(images: dict[str, Image]) -> Iterator[Lab]:
    home = Path(os.environ["LIVECLONE_HOME"]).with_name("fault")
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name("fault")
    lab = Lab(home, hot, images)
    yield lab
    lab.close()
    shutil.rmtree(hot)


class Sources:
    """Gives a machine that was started from cold and has not handed over; boots one only when it must."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._machine: Machine | None = None
        self.token = ""
        self._count = 0

    def take(self) -> Machine:
        """Return a running machine whose RAM is its own file."""
        machine = self.any()
        if machine.memory is None or machine.memory.source is not MemorySource.SHARED_HOT:
            self._lab.remove(machine)
            machine = self.any()
        return machine

    def any(self) -> Machine:
        """Return a running machine, whatever its RAM is mapped from."""
        if self._machine is not None:
            known = {machine.id: machine for machine in self._lab.ctx.machines.list()}
            found = known.get(self._machine.id)
            if found is not None and process.is_alive(found.process):
                return found
            if found is not None:
                self._lab.remove(found)
        self._count += 1
        self._machine = self._lab.boot(f"source{self._count}", "light")
        self.token = self._lab.http(self._machine)["token"]
        return self._machine

    def check(self) -> None:
        """Fail unless the machine runs on, with the memory it had."""
        assert self._machine is not None
        machine = self._lab.reload(self._machine)
        assert process.is_alive(machine.process)
        assert self._lab.http(machine)["token"] == self.token


@pytest.fixture(scope="session")
def sources(lab: Lab) -> Sources:
    return Sources(lab)


@pytest.fixture(scope="session")
def _shop(
    libvirtd: Libvirtd, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    from tests.fault.domains import ADDRESS_WAIT_S, Shop
    from tests.fault.rooms import open_tmpfs

    folder = tmp_path_factory.mktemp("shop")
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name("shop")
    with ExitStack() as undo:
        rooms = [
            undo.enter_context(open_tmpfs(path, size))
            for path, size in ((hot, 640 * MIB), (folder / "disks", 512 * MIB))
        ]
        patch = undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(wiring, "ADDRESS_WAIT_S", ADDRESS_WAIT_S)
        shop = Shop(folder / "home", rooms[0], rooms[1], libvirtd, images["light"])
        yield shop
        shop.close()


@pytest.fixture
def shop(_shop: Shop) -> Iterator[Shop]:
    """An adopted libvirt domain that runs, the same for all; afterwards nothing of the test may be left over."""
    if not _shop.is_as_before():
        _shop.revive()
    yield _shop
    _shop.clear()


@pytest.fixture(scope="module")
def taken(_shop: Shop) -> Iterator[Snapshot]:
    """A snapshot of it that is used again and again."""
    if not _shop.is_as_before():
        _shop.revive()
    taken = _shop.lab.snapshot(_shop.machine)
    _shop.kept.add(taken.id)
    yield taken
    _shop.kept.remove(taken.id)
    _shop.lab.snapshots_sealed()
    _shop.lab.remove_snapshot(taken)


@pytest.fixture(autouse=True)
def _in_order(lab: Lab) -> Iterator[None]:
    """After each test: one running process a machine, one writer a disk, nothing is left over, no snapshot stays."""
    yield
    lab.snapshots_sealed()
    faults = lab.find_faults()
    for taken in lab.ctx.snapshots.list():
        lab.remove_snapshot(taken)
    faults += lab.find_faults()
    assert not faults, "\n".join(faults)
