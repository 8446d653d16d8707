"""What a contract test needs to have to do with any hypervisor: machines whose guest counts, captures, clones.

A `Lab` belongs to one test. It makes the folders that the engine would make, and ends every process that is left at the
end. A subclass says how its hypervisor's guest is looked into.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from liveclone.drivers.base import BootPlan, Captured, CapturePlan, Driver, Handle, RestorePlan
from liveclone.drivers.fake.driver import FakeDriver
from liveclone.drivers.fake.guest import is_consistent
from liveclone.drivers.fake.handle import FakeHandle
from liveclone.drivers.qemu.driver import QemuDriver
from liveclone.errors import NotFound
from liveclone.formats import qcow2
from liveclone.host import process
from liveclone.model.base import now
from liveclone.model.identity import Generation
from liveclone.model.machine import Boot, Hardware, Machine, Memory, MemorySource
from liveclone.model.network import NetworkKind, Nic
from liveclone.model.snapshot import CaptureMethod
from liveclone.units import MIB

DISK_BYTES = 1024 * MIB
PATIENCE_S = 30.0


@dataclass
class Subject:
    """A machine under test, as the engine would know it."""

    machine: Machine
    folder: Path
    handle: Handle

    @property
    def pid(self) -> int:
        return self.handle.process.pid


@dataclass(frozen=True)
class Shot:
    """A capture that was taken: all that a clone needs."""

    plan: CapturePlan
    captured: Captured
    hardware: Hardware

    def digests(self) -> list[str]:
        """Return what tells whether any byte of it has changed."""
        parts = (self.plan.device_state, self.plan.memory, self.plan.frozen_disk)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]


class Lab:
    """One test's hypervisor; see the module."""

    name = ""

    def __init__(self, home: Path, hot: Path) -> None:
        self.home, self.hot = home, hot
        self.driver = make_driver(self.name, home)
        self._open: list[Subject] = []

    # What a subclass says

    async def boot(self, name: str = "source") -> Subject:
        """Return a running machine whose guest counts, with RAM of its own on tmpfs."""
        raise NotImplementedError

    async def count(self, subject: Subject) -> int:
        """Return how far the guest has counted."""
        raise NotImplementedError

    async def check(self, subject: Subject) -> None:
        """Fail unless all that the guest has in memory and on its disk is of one instant."""
        raise NotImplementedError

    async def write(self, subject: Subject, name: str, text: str) -> None:
        """Let the guest write a file, down to its disk."""
        raise NotImplementedError

    async def read(self, subject: Subject, name: str) -> str | None:
        """Return the text of a file of the guest, None where there is none."""
        raise NotImplementedError

    # What is the same for all

    def machine_folder(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir()
        return folder

    async def capture(self, subject: Subject, method: CaptureMethod, **changes: Any) -> Shot:
        """Capture as the engine does, and let `subject` be what the machine is now."""
        plan = self.plan(subject, method, **changes)
        captured = await subject.handle.capture(plan)
        subject.handle = captured.handle
        subject.machine = subject.machine.replace(
            process=captured.handle.process, memory=captured.memory, disk=str(plan.next_disk)
        )
        return Shot(plan, captured, captured.handle.hardware)

    def plan(self, subject: Subject, method: CaptureMethod, **changes: Any) -> CapturePlan:
        """Return a plan whose files are as the engine leaves them to a driver."""
        folder = self.home / f"snapshot-{secrets.token_hex(4)}"
        folder.mkdir()
        frozen = folder / "disk.qcow2"
        os.link(subject.machine.disk, frozen)
        next_disk = subject.folder / f"disk-{folder.name}.qcow2"
        make_overlay(next_disk, frozen)
        assert subject.machine.memory is not None
        in_place = method is CaptureMethod.HANDOVER
        memory = Path(subject.machine.memory.path) if in_place else self.hot / f"{folder.name}.mem"
        plan = CapturePlan(
            method=method,
            machine=subject.machine,
            folder=subject.folder,
            device_state=folder / "state",
            memory=memory,
            frozen_disk=frozen,
            next_disk=next_disk,
        )
        for field, value in changes.items():
            setattr(plan, field, value)
        return plan

    async def restore(self, shot: Shot, name: str) -> Subject:
        """Return a clone; it stands still at the instant of the capture."""
        folder = self.machine_folder(name)
        disk = folder / "disk.qcow2"
        make_overlay(disk, shot.plan.frozen_disk)
        plan = self.restore_plan(shot, name, folder, disk)
        handle = await self.driver.restore(plan)
        return self.add(make_machine(self.name, name, shot.hardware, disk, plan.memory), folder, handle)

    @staticmethod
    def restore_plan(shot: Shot, name: str, folder: Path, disk: Path) -> RestorePlan:
        return RestorePlan(
            machine_id="0" * 12,
            name=name,
            folder=folder,
            hardware=shot.hardware,
            boot=shot.plan.machine.boot,
            disk=disk,
            memory=Memory(path=str(shot.plan.memory), source=MemorySource.PRIVATE_HOT),
            device_state=shot.plan.device_state,
            ignore_shared=shot.captured.ignore_shared,
        )

    def add(self, machine: Machine, folder: Path, handle: Handle) -> Subject:
        running = machine.replace(process=handle.process, hardware=handle.hardware)
        subject = Subject(running, folder, handle)
        self._open.append(subject)
        return subject

    async def reopen(self, subject: Subject) -> None:
        """Let go of the machine and connect again."""
        await subject.handle.close()
        subject.handle = await self.driver.open(subject.machine, subject.folder)

    async def runs_on(self, subject: Subject) -> None:
        """Wait until the guest has counted further."""
        begin = await self.count(subject)
        await self.wait_until(subject, lambda count: count > begin)

    async def wait_until(self, subject: Subject, reached: Callable[[int], bool]) -> None:
        """Wait until the guest has counted as far as `reached` says."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached(await self.count(subject)):
                pass

    def processes(self) -> list[int]:
        """Return the processes of this lab's machines."""
        mark = os.fsencode(self.home)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return sorted(found)

    async def aclose(self) -> None:
        """End everything."""
        for subject in self._open:
            await subject.handle.close()
        for pid in self.processes():
            with contextlib.suppress(NotFound):
                await process.end(process.ref(pid))
        for folder in (self.home, self.hot):
            shutil.rmtree(folder, ignore_errors=True)


class FakeLab(Lab):
    """The fake hypervisor: every test boots a machine of its own."""

    name = "fake"

    async def boot(self, name: str = "source") -> Subject:
        folder = self.machine_folder(name)
        base = self.home / "base.qcow2"
        base.touch()
        disk = folder / "disk.qcow2"
        make_overlay(disk, base)
        memory = Memory(path=str(self.hot / f"{name}.ram"), source=MemorySource.SHARED_HOT)
        hardware = Hardware(ram_bytes=16 * MIB)
        handle = await self.driver.boot(
            BootPlan(
                machine_id="0" * 12,
                name=name,
                folder=folder,
                hardware=hardware,
                boot=Boot(),
                disk=disk,
                memory=memory,
            )
        )
        return self.add(make_machine(self.name, name, hardware, disk, memory), folder, handle)

    async def count(self, subject: Subject) -> int:
        seen = await _fake(subject).look()
        return int(seen["tick"] * len(seen["pages"]) + seen["page"])

    async def check(self, subject: Subject) -> None:
        seen = await _fake(subject).look()
        assert is_consistent(seen), seen

    async def write(self, subject: Subject, name: str, text: str) -> None:
        await _fake(subject).write(f"/srv/{name}", text)

    async def read(self, subject: Subject, name: str) -> str | None:
        return await _fake(subject).read(f"/srv/{name}")


def _fake(subject: Subject) -> FakeHandle:
    assert isinstance(subject.handle, FakeHandle)
    return subject.handle


def make_driver(name: str, home: Path) -> Driver:
    return FakeDriver(home / "fake") if name == "fake" else QemuDriver()


def make_overlay(path: Path, backing: Path) -> None:
    path.write_bytes(qcow2.render_overlay(str(backing), "qcow2", DISK_BYTES))


def make_machine(driver: str, name: str, hardware: Hardware, disk: Path, memory: Memory) -> Machine:
    return Machine(
        id="0" * 12,
        name=name,
        created_at=now(),
        driver=driver,
        hardware=hardware,
        image="image",
        boot=Boot(),
        disk=str(disk),
        disk_bytes=DISK_BYTES,
        memory=memory,
        network=NetworkKind.USER,
        generation=Generation(counter=0, uuid=""),
    )


def make_nic(id: str = "nic0", mac: str = "02:00:00:00:00:01") -> Nic:
    return Nic(id=id, kind=NetworkKind.USER, mac=mac, address="10.213.0.7/16", gateway="10.213.0.1")


def capture_in_child(driver: str, home: str, machine: Any, plan: dict[str, str], notes: str) -> None:
    """Capture a machine that runs, as a command would; a job for `children`. Facts go to the file `notes`."""

    async def story() -> None:
        facts: dict[str, Any] = {}
        subject = msgspec.convert(machine, Machine)
        handle = await make_driver(driver, Path(home)).open(subject, Path(plan["folder"]))

        def note(step: str, **more: Any) -> None:
            facts.update(msgspec.to_builtins(more), step=step)
            Path(notes).write_text(json.dumps(facts))

        async def unplug() -> None:
            for nic in await handle.nics():
                await handle.unplug(nic, 10.0)

        paths = {
            name: Path(plan[name])
            for name in ("folder", "device_state", "memory", "frozen_disk", "next_disk")
        }
        method = CaptureMethod(plan["method"])
        captured = await handle.capture(
            CapturePlan(method, subject, **paths, note=note, before_pause=unplug)  # type: ignore[arg-type]
        )
        await captured.handle.close()

    asyncio.run(story())


def plan_for_child(plan: CapturePlan) -> dict[str, str]:
    names = ("folder", "device_state", "memory", "frozen_disk", "next_disk")
    return {name: str(getattr(plan, name)) for name in names} | {"method": plan.method.value}
