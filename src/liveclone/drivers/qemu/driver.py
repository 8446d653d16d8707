"""The QEMU driver: abilities of this host, machines from cold, from a snapshot, and found again."""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from ... import trace
from ...errors import NotFound, Unsupported
from ...host import acceleration, flatten, process
from ...model.machine import Acceleration, Boot, Hardware, Machine, Memory
from ...model.snapshot import CaptureMethod
from ..base import Abilities, Adoption, BootPlan, Recovered, RestorePlan, cannot_adopt
from . import argv, launch, migration, recovery
from .connection import connect_port
from .handle import QemuHandle
from .session import open_session

# `file:` migration and readonly=on,rom=off came with 8.2; 7.2 crashes Linux 6.12 guests under TCG (FACTS.md).
OLDEST = (8, 2)
LOAD_DEADLINE_S = 60.0


class QemuDriver:
    """Implements `drivers.base.Driver` with one QEMU process a machine."""

    name = "qemu"
    shared = False
    methods = tuple(CaptureMethod)

    def __init__(self) -> None:
        self._abilities: Abilities | None = None

    async def abilities(self) -> Abilities:
        if self._abilities is None:
            self._abilities = await _examine()
        return self._abilities

    async def boot(self, plan: BootPlan) -> QemuHandle:
        hardware = await self._resolve(plan.hardware)
        launch.make_ram_file(plan.memory, hardware.ram_bytes)
        async with AsyncExitStack() as undo:
            undo.callback(Path(plan.memory.path).unlink, missing_ok=True)
            handle = await self._launch(
                plan.name, plan.folder, hardware, plan.boot, plan.disk, plan.memory, incoming=False
            )
            undo.pop_all()
        return handle

    async def restore(self, plan: RestorePlan) -> QemuHandle:
        await self._check_family(plan)
        handle = await self._launch(
            plan.name, plan.folder, plan.hardware, plan.boot, plan.disk, plan.memory, incoming=True
        )
        async with AsyncExitStack() as undo:
            undo.push_async_callback(handle.kill)
            undo.push_async_callback(handle.close)
            trace.at("clone.started")
            await handle.connect_early(plan.folder / launch.CURRENT)
            await migration.set_abilities(
                handle.session, *(["x-ignore-shared"] if plan.ignore_shared else [])
            )
            await migration.load_state(handle.session, plan.device_state, LOAD_DEADLINE_S)
            trace.at("clone.loaded")
            undo.pop_all()
        return handle

    async def open(self, machine: Machine, folder: Path) -> QemuHandle:
        if machine.process is None or not process.is_alive(machine.process):
            raise NotFound(
                f"{machine.name} does not run",
                code="not-running",
                tried="finding its QEMU",
                on=machine.name,
                seen="no such process",
                next_step=f"liveclone start {machine.name}",
            )
        session = await open_session(machine.name, launch.socket_path(folder, "qmp"), launch.log_path(folder))
        return QemuHandle(machine.name, folder, machine.hardware, machine.process, session)

    async def connect_port(
        self, machine: Machine, folder: Path, port: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await connect_port(machine.name, folder, port)

    async def recover(self, machine: Machine, folder: Path, facts: dict[str, Any]) -> Recovered:
        return await recovery.recover(machine, folder, facts)

    async def look(self, folder: Path, name: str = "") -> Adoption:
        raise cannot_adopt(self.name, name)

    def why_full(self, folder: Path) -> str:
        return ""

    async def forget(self, folder: Path) -> None:
        """All that there is of a machine is in its folder."""

    async def sweep(self) -> None:
        """Nothing lies elsewhere."""

    async def flatten(self, disk: Path, target: Path) -> None:
        await flatten.flatten(disk, target)

    async def _launch(
        self,
        name: str,
        folder: Path,
        hardware: Hardware,
        boot: Boot,
        disk: Path,
        memory: Memory,
        *,
        incoming: bool,
    ) -> QemuHandle:
        abilities = await self.abilities()
        launched = await launch.launch(
            name=name,
            folder=folder,
            hardware=hardware,
            boot=boot,
            disk=disk,
            memory=memory,
            read_only_ram=abilities.read_only_ram,
            incoming=incoming,
        )
        launch.adopt(folder, launched.run)
        return QemuHandle(name, folder, hardware, launched.process, launched.session)

    async def _resolve(self, hardware: Hardware) -> Hardware:
        """Return `hardware` with everything named that a snapshot will have to match."""
        abilities = await self.abilities()
        if abilities.problems:
            raise Unsupported(
                f"QEMU cannot be used here: {abilities.problems[0]}",
                code="qemu-unusable",
                tried="looking at QEMU",
                on=argv.BINARY,
                seen="; ".join(abilities.problems),
                next_step="liveclone doctor",
            )
        kvm = abilities.acceleration is Acceleration.KVM
        version = abilities.version.split(".")
        resolved: Hardware = hardware.replace(
            machine_type=hardware.machine_type or f"pc-q35-{version[0]}.{version[1]}",
            cpu=hardware.cpu or ("host,migratable=on" if kvm else "max"),
            acceleration=abilities.acceleration,
            hypervisor=f"qemu {abilities.version}",
        )
        return resolved

    async def _check_family(self, plan: RestorePlan) -> None:
        """Device state loads only in the same QEMU family, under the same acceleration (FACTS.md)."""
        abilities = await self.abilities()
        here = f"qemu {abilities.version}"
        taken = plan.hardware.hypervisor
        if _family(taken) != _family(here) or plan.hardware.acceleration is not abilities.acceleration:
            raise Unsupported(
                f"the snapshot was taken with {taken} ({plan.hardware.acceleration.value}), here is {here}",
                code="other-hypervisor",
                tried="loading device state",
                on=plan.name,
                seen=f"{here} ({abilities.acceleration.value})",
                next_step=f"start it on a host with {taken}, or take a new snapshot here",
            )


def _family(hypervisor: str) -> str:
    """Return "qemu 10.0" for "qemu 10.0.2": stable releases of one family share their device state."""
    return ".".join(hypervisor.split(".")[:2])


async def _examine() -> Abilities:
    chosen, reason = acceleration.choose()
    path = shutil.which(argv.BINARY)
    if path is None:
        return Abilities("qemu", "", chosen, reason, (), False, (f"{argv.BINARY} is not installed",))
    child = await asyncio.create_subprocess_exec(path, "-version", stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    match = re.search(rb"version (\d+)\.(\d+)\.(\d+)", output)
    version = tuple(int(part) for part in match.groups()) if match else (0, 0, 0)
    text = ".".join(map(str, version))
    problems = () if version >= OLDEST else (f"QEMU {text} is older than 8.2",)
    methods = tuple(CaptureMethod)
    return Abilities("qemu", text, chosen, reason, methods, True, problems)
