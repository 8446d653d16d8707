"""A home of its own in which the engine runs on the fake hypervisor, and a look at what is left in it.

`find_faults` says all that must not be while no operation is under way: a process that belongs to no machine, a source
that does not run, a file, folder, address or journal that belongs to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from liveclone.drivers.fake import layers
from liveclone.drivers.fake.faults import VARIABLE
from liveclone.drivers.fake.guest import is_consistent
from liveclone.drivers.fake.handle import FakeHandle
from liveclone.engine import clone, export, importing, pool, refill, remove, repair, run, seal, snapshot
from liveclone.engine.context import Context, open_context
from liveclone.engine.settings import read as read_settings
from liveclone.errors import NotFound
from liveclone.host import process
from liveclone.model.base import encode, now
from liveclone.model.image import Image
from liveclone.model.machine import Boot, Machine, MachineState
from liveclone.model.network import NetworkKind
from liveclone.model.snapshot import CaptureMethod, Snapshot
from liveclone.units import MIB

T = TypeVar("T")

SNAPSHOT_PARTS = (
    "manifest.json",
    "state",
    "memory",
    "disk.qcow2",
    "key",
    "evidence",
    "stamps.json",
    seal.LOG,
    "pool",
)
COLLECTIONS = ("machines", "snapshots", "leases", "network", "host-key")  # that have a lock
RAM = 128 * MIB
IMAGE = "image"
SCRUB = snapshot.Scrubbing(paths=("/srv/token",))


class World:
    """See the module. `environment` is what a command in this home needs in its own.

    Args:
        keys: the image's system has host keys too, so that every machine runs ssh-keygen, which takes its time.
    """

    def __init__(self, home: Path, hot: Path, *, keys: bool = False) -> None:
        self.home, self.hot = home, hot
        self.environment = {
            "LIVECLONE_HOME": str(home),
            "LIVECLONE_HOT": str(hot),
            "LIVECLONE_DRIVER": "fake",
            "LIVECLONE_NETWORK": "user",
        }
        self.ctx = open_world(self.environment)
        folder = self.ctx.layout.images / IMAGE
        folder.mkdir(parents=True)
        disk = folder / "disk.qcow2"
        light = {"/etc/hostname": "image\n", "/etc/machine-id": "0" * 32 + "\n"}
        layers.write_base(disk, {} if keys else light)
        image = Image(
            name=IMAGE, created_at=now(), disk=str(disk), disk_bytes=1024 * MIB, boot=Boot(), has_agent=True
        )
        (folder / "manifest.json").write_bytes(encode(image))

    # The product

    async def run(self, name: str = "web", *, faults: str = "", **options: Any) -> Machine:
        with failing(faults):
            return await run.run(self.ctx, run.Request(image=IMAGE, name=name, ram_bytes=RAM, **options))

    async def snapshot(
        self, machine: str = "web", name: str = "", method: CaptureMethod | None = None, **options: Any
    ) -> Snapshot:
        return await snapshot.take(
            self.ctx, snapshot.Request(machine=machine, name=name, method=method, **options)
        )

    async def clone(
        self, taken: str = "web-1", count: int = 1, *, faults: str = "", **options: Any
    ) -> list[clone.Result]:
        with failing(faults):
            return await clone.start(self.ctx, clone.Request(snapshot=taken, count=count, **options))

    async def remove(self, *names: str) -> None:
        for name in names:
            await remove.remove_machine(self.ctx, name, force=True)

    async def repair(self) -> list[str]:
        return await repair.settle_all(self.ctx)

    def machine(self, name: str) -> Machine:
        return self.ctx.machines.find(name)

    # A look inside

    async def with_handle(self, name: str, ask: Callable[[FakeHandle], Coroutine[Any, Any, T]]) -> T:
        machine = self.machine(name)
        handle = await self.ctx.driver.open(machine, self.ctx.layout.machine(machine.id))
        assert isinstance(handle, FakeHandle)
        try:
            return await ask(handle)
        finally:
            await handle.close()

    async def read(self, name: str, file: str) -> str:
        return (await self.with_handle(name, lambda handle: handle.read(file)) or "").strip()

    async def write(self, name: str, file: str, text: str) -> None:
        await self.with_handle(name, lambda handle: handle.write(file, text))

    async def check_runs(self, name: str, nics: tuple[str, ...] = ("nic0",)) -> None:
        """Fail unless the machine runs, is of one piece, and has its NICs."""

        async def look(handle: FakeHandle) -> None:
            assert await handle.state() is MachineState.RUNNING
            assert await handle.nics() == nics
            before = await handle.look()
            async with asyncio.timeout(10.0):
                while (after := await handle.look())["pages"] == before["pages"]:
                    pass
            assert is_consistent(after), after

        await self.with_handle(name, look)

    async def find_faults(self) -> list[str]:
        """Return all that must not be."""
        machines, snapshots = self.ctx.machines.list(), self.ctx.snapshots.list()
        layout = self.ctx.layout
        faults = []
        waiting = {w.machine.id: w.machine for taken in snapshots for w in pool.find(self.ctx, taken.id)}
        known = {m.process.pid for m in (*machines, *waiting.values()) if m.process is not None}
        faults += [f"process {pid} belongs to no machine" for pid in self.processes() if pid not in known]
        for machine in machines:
            if machine.process is not None:
                nics = () if machine.quarantined else tuple(nic.id for nic in machine.nics)
                await self.check_runs(machine.name, nics)
            if self.ctx.journal(machine.id).read() is not None:
                faults.append(f"{machine.name} has a journal")
        for one in waiting.values():
            if not process.is_alive(one.process) or self.ctx.journal(one.id).read() is not None:
                faults.append(f"{one.name} does not wait")
        names = {machine.id: machine for machine in machines}
        for folder in layout.machines.iterdir():
            owner = (names | waiting).get(folder.name)
            if owner is None:
                faults.append(f"{folder} has no manifest: {sorted(p.name for p in folder.iterdir())}")
                continue
            allowed = {"manifest.json", "qemu.log", "console.log", Path(owner.disk).name}
            if owner.process is not None:
                allowed |= {"run", (folder / "run").readlink().name}
            faults += [f"{path} is left over" for path in folder.iterdir() if path.name not in allowed]
        needed = {layer for machine in machines for layer in machine.layers}
        needed |= {layer for taken in snapshots for layer in taken.layers}
        for folder in layout.snapshots.iterdir():
            parts = sorted(path.name for path in folder.iterdir())
            if folder.name in {taken.id for taken in snapshots}:
                faults += [f"{folder / name} is left over" for name in parts if name not in SNAPSHOT_PARTS]
                continue
            if folder.name not in needed or parts != ["disk.qcow2"]:
                faults.append(f"{folder} is left over: {parts}")
        used = {machine.memory.path for machine in machines if machine.memory}
        used |= {taken.hot.path for taken in snapshots if taken.hot}
        faults += [f"{path} is left over" for path in self.hot.iterdir() if str(path) not in used]
        for owner_id in self.leased():
            if owner_id not in names:
                faults.append(f"an address is leased to {owner_id}, who is gone")
        return faults

    def leased(self) -> set[str]:
        """Return the ids of all machines that have an address."""
        leases = self.ctx.leases._read()
        return set(leases.addresses.values())

    def processes(self) -> list[int]:
        """Return the machines' processes."""
        mark = os.fsencode(self.home)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes()
                    if mark in words and b"drivers.fake.machine" in words:
                        found.append(int(entry.name))
        return sorted(found)

    async def remove_all(self) -> None:
        """Remove every machine and snapshot; nothing at all may be left."""
        await self.repair()
        for machine in self.ctx.machines.list():
            await self.remove(machine.id)
        for taken in self.ctx.snapshots.list():
            await remove.remove_snapshot(self.ctx, taken.id)
        layout = self.ctx.layout
        left = [path for folder in (layout.machines, layout.snapshots, self.hot) for path in folder.iterdir()]
        left += [path for path in layout.locks.iterdir() if path.name not in COLLECTIONS]
        assert (left, self.processes(), self.leased()) == ([], [], set())

    async def aclose(self) -> None:
        """End every process and remove every file, whatever has happened."""
        for pid in self.processes():
            with contextlib.suppress(NotFound):
                await process.end(process.ref(pid))
        for folder in (self.home, self.hot):
            shutil.rmtree(folder, ignore_errors=True)


def open_world(environment: dict[str, str]) -> Context:
    """Return a context as a command with this environment would have it."""
    return open_context(replace(read_settings(os.environ | environment), network=NetworkKind.USER))


@contextlib.contextmanager
def failing(faults: str) -> Any:
    """Let machines that start in the block have these faults (drivers/fake/faults.py)."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = faults
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def without_sealing() -> None:
    """Let this process take snapshots without starting to seal them.

    To seal is to start a Python that imports half the product; tests that are not about it would do little else.
    """
    seal.start = lambda ctx, snapshot: None  # type: ignore[assignment,return-value]


def without_refilling() -> None:
    """Let this process take from pools without starting to fill them again: a test asks for that itself."""
    refill.start = lambda ctx, snapshot: None


# Jobs for `children`: operations as commands of their own, which a fault may end at any point.


def run_job(name: str) -> str:
    request = run.Request(image=IMAGE, name=name, ram_bytes=RAM)
    return asyncio.run(run.run(open_context(), request)).id


def start_job(name: str) -> str:
    return asyncio.run(run.start(open_context(), name)).id


def snapshot_job(machine: str, name: str, method: str) -> str:
    without_sealing()
    request = snapshot.Request(machine=machine, name=name, method=CaptureMethod(method))
    return asyncio.run(snapshot.take(open_context(), request)).id


def scrub_job(machine: str, name: str) -> str:
    without_sealing()
    request = snapshot.Request(machine=machine, name=name, scrub=SCRUB)
    return asyncio.run(snapshot.take(open_context(), request)).id


def seal_job(snapshot_id: str) -> str:
    return seal.seal(open_context(), snapshot_id).state.value


def clone_job(taken: str, name: str) -> str:
    without_refilling()
    results = asyncio.run(clone.start(open_context(), clone.Request(snapshot=taken, names=(name,))))
    for result in results:
        if result.error is not None:
            raise result.error
    return name


def fill_job(taken: str, size: str) -> str:
    return str(asyncio.run(refill.set_size(open_context(), taken, int(size))).ready)


def export_job(taken: str, file: str) -> str:
    return asyncio.run(export.export(open_context(), taken, Path(file), i_know=True)).snapshot


def import_job(file: str, name: str) -> str:
    return asyncio.run(importing.import_(open_context(), Path(file), name)).snapshot.id
