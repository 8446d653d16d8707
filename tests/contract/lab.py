"""What a contract test needs to have to do with any hypervisor: machines whose guest counts, captures, clones.

A `Lab` belongs to one test. It makes the folders that the engine would make, and ends every process that is left at the
end. A subclass says how its hypervisor's guest is looked into.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from liveclone.drivers.base import BootPlan, Captured, CapturePlan, Driver, Handle, RestorePlan
from liveclone.drivers.fake.driver import FakeDriver
from liveclone.drivers.fake.guest import is_consistent
from liveclone.drivers.fake.handle import FakeHandle
from liveclone.drivers.libvirt.driver import LibvirtDriver
from liveclone.drivers.qemu.driver import QemuDriver
from liveclone.engine import agent as agents
from liveclone.errors import NotFound
from liveclone.formats import qcow2
from liveclone.host import files, process
from liveclone.model.base import now
from liveclone.model.identity import Generation
from liveclone.model.image import Image
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
    obeys_power_button = True  # its guest shuts down when it is asked to
    publishes_ports = True
    methods = tuple(CaptureMethod)

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

    async def go_ahead(self, subject: Subject) -> None:
        """Let the guest count so far that a clone of an earlier instant cannot have counted as far when `wake` returns."""
        raise NotImplementedError

    async def wake(self, clone: Subject) -> int:
        """Let a clone run; return how far it had counted when it was captured, or soon afterwards."""
        raise NotImplementedError

    # What is the same for all

    def offered(self, method: CaptureMethod) -> CaptureMethod:
        """Return `method`, or what this hypervisor has instead."""
        return method if method in self.methods else self.methods[0]

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
        for subject in self._open:
            await self.driver.forget(subject.folder)
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
        whole = len(seen["pages"])
        return int((seen["tick"] - 1) * whole + (seen["page"] or whole))  # at page 0 a round is whole

    async def go_ahead(self, subject: Subject) -> None:
        await self.runs_on(subject)

    async def wake(self, clone: Subject) -> int:
        count = await self.count(clone)  # this hypervisor looks into a guest that stands still
        await clone.handle.resume()
        return count

    async def check(self, subject: Subject) -> None:
        seen = await _fake(subject).look()
        assert is_consistent(seen), seen

    async def write(self, subject: Subject, name: str, text: str) -> None:
        await _fake(subject).write(f"/srv/{name}", text)

    async def read(self, subject: Subject, name: str) -> str | None:
        return await _fake(subject).read(f"/srv/{name}")


class DebianLab(Lab):
    """A small Debian. It boots once a session (`make_seed`); each test goes on with a copy of that machine."""

    obeys_power_button = False  # the light guest has no systemd

    def __init__(self, home: Path, hot: Path, seed: Shot | None) -> None:
        super().__init__(home, hot)
        self.seed = seed

    async def boot(self, name: str = "source") -> Subject:
        assert self.seed is not None
        folder = self.machine_folder(name)
        disk = folder / "disk.qcow2"
        make_overlay(disk, self.seed.plan.frozen_disk)
        memory = self.own_memory(name)
        handle = await self.driver.restore(
            replace(self.restore_plan(self.seed, name, folder, disk), memory=memory)
        )
        await handle.resume()
        machine = make_machine(self.name, name, self.seed.hardware, disk, memory)
        return self.add(machine.replace(boot=self.seed.plan.machine.boot), folder, handle)

    def own_memory(self, name: str) -> Memory:
        """Return where the RAM of a machine that was copied comes from."""
        raise NotImplementedError

    async def count(self, subject: Subject) -> int:
        count, verdict = (await run_in_guest(subject, "cat /run/count")).split()
        assert verdict == "whole"
        return int(count)

    async def go_ahead(self, subject: Subject) -> None:
        enough = await self.count(subject) + 100  # more than a second; `wake` takes a fraction of one
        await self.wait_until(subject, lambda count: count > enough)

    async def wake(self, clone: Subject) -> int:
        await clone.handle.resume()
        return await self.count(clone)

    async def check(self, subject: Subject) -> None:
        await self.count(subject)

    async def write(self, subject: Subject, name: str, text: str) -> None:
        await run_in_guest(subject, f"printf %s {shlex.quote(text)} >/root/{name}; sync")

    async def read(self, subject: Subject, name: str) -> str | None:
        # From the disk itself: what the guest has cached is part of its memory.
        return await run_in_guest(subject, f"dd if=/root/{name} bs=1M iflag=direct status=none")


class QemuLab(DebianLab):
    """QEMU. The copy's RAM is a file of its own, mapped shared, so it is to the driver what a machine from cold is."""

    name = "qemu"

    def own_memory(self, name: str) -> Memory:
        assert self.seed is not None
        memory = Memory(path=str(self.hot / f"{name}.ram"), source=MemorySource.SHARED_HOT)
        files.copy_sparse(self.seed.plan.memory, Path(memory.path))
        return memory


class LibvirtLab(DebianLab):
    """libvirt, in a mount namespace of the session's own."""

    name = "libvirt"
    publishes_ports = False
    methods = (CaptureMethod.STREAM,)

    def own_memory(self, name: str) -> Memory:
        assert self.seed is not None
        return Memory(path=str(self.seed.plan.memory), source=MemorySource.PRIVATE_HOT)


# Counts in 64 pages of memory, and looks whether all of them hold what it wrote a round ago.
COUNTER = """
import mmap, os, time
pages = range(0, 64 * 4096, 4096)
memory = mmap.mmap(-1, 64 * 4096)
told = os.open("/run/count", os.O_WRONLY | os.O_CREAT)
count = 0
while True:
    whole = {memory[page : page + 8] for page in pages} == {count.to_bytes(8, "big")}
    count += 1
    for page in pages:
        memory[page : page + 8] = count.to_bytes(8, "big")
    os.pwrite(told, b"%012d %s\\n" % (count, b"whole" if whole else b"torn!"), 0)
    if not whole:
        break
    time.sleep(0.01)  # several of these run at a time, under emulation
"""


async def make_seed(lab: DebianLab, image: Image) -> Shot:
    """Boot a machine, let its guest count, and capture it; the machine ends, its capture stays in the lab's folders."""
    folder = lab.machine_folder("seed")
    disk = folder / "disk.qcow2"
    make_overlay(disk, Path(image.disk), image.disk_bytes)
    memory = Memory(path=str(lab.hot / "seed.ram"), source=MemorySource.SHARED_HOT)
    handle = await lab.driver.boot(
        BootPlan(
            machine_id="0" * 12,
            name="seed",
            folder=folder,
            hardware=Hardware(ram_bytes=192 * MIB),
            boot=image.boot,
            disk=disk,
            memory=memory,
        )
    )
    try:
        machine = make_machine(lab.name, "seed", handle.hardware, disk, memory)
        subject = lab.add(machine.replace(boot=image.boot), folder, handle)
        async with agents.connect(handle, "seed") as agent:
            await agent.call("ping", deadline_s=180.0, repeat=True)
        program = base64.b64encode(COUNTER.encode()).decode()
        line = f"python3 -I -S -c \"import base64; exec(base64.b64decode('{program}'))\""
        await run_in_guest(
            subject, f"setsid {line} </dev/null >/dev/null 2>&1 & until cat /run/count; do sleep 0.1; done"
        )
        return await lab.capture(subject, CaptureMethod.STREAM)
    finally:
        await subject.handle.kill()
        await subject.handle.close()
        await lab.driver.forget(folder)
        Path(memory.path).unlink(missing_ok=True)


async def run_in_guest(subject: Subject, script: str) -> str:
    """Run a script in the guest through its agent and return what it wrote."""
    output = b""
    async with agents.connect(subject.handle, subject.machine.name, "exec") as agent:
        job = (await agent.call("exec_start", {"argv": ["sh", "-c", script]}, deadline_s=PATIENCE_S))["job"]
        code = None
        while code is None:
            args = {"job": job, "stdout_from": len(output), "wait_s": PATIENCE_S / 2}
            answer = await agent.call("exec_io", args, deadline_s=PATIENCE_S)
            output += base64.b64decode(answer["stdout"]["data"])
            code = answer["exit_code"]
        await agent.call("exec_close", {"job": job}, deadline_s=PATIENCE_S)
    assert code == 0, f"{script!r} ended with {code}"
    return output.decode()


def _fake(subject: Subject) -> FakeHandle:
    assert isinstance(subject.handle, FakeHandle)
    return subject.handle


def make_driver(name: str, home: Path) -> Driver:
    """Return the hypervisor; libvirt's default URI is that of the session's own (see conftest)."""
    if name == "libvirt":
        return LibvirtDriver(os.environ["LIVECLONE_LIBVIRT_URI"])
    return FakeDriver(home / "fake") if name == "fake" else QemuDriver()


def make_overlay(path: Path, backing: Path, size_bytes: int = 0) -> None:
    """Write an empty layer, of the size of the one below unless it is given."""
    if not size_bytes:
        with backing.open("rb") as file:
            head = file.read(qcow2.HEADER_BYTES)
        size_bytes = qcow2.parse_header(head).size_bytes if head else DISK_BYTES
    path.write_bytes(qcow2.render_overlay(str(backing), "qcow2", size_bytes))


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
    return Nic(
        id=id, kind=NetworkKind.USER, mac=mac, address="10.213.0.7/16", gateway="10.213.0.1", dns="10.213.0.3"
    )


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
