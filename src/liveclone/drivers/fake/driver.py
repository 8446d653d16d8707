"""The fake driver: machines from cold, from a snapshot, and found again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from ... import trace
from ...errors import HypervisorError, NotFound, StoreError, Unsupported
from ...host import process
from ...model.machine import Acceleration, Hardware, Machine, Memory
from ...model.snapshot import CaptureMethod
from ..base import Abilities, Adoption, BootPlan, Recovered, RestorePlan, cannot_adopt
from . import launch, layers, recovery
from .connection import connect_port
from .handle import FakeHandle
from .ram import LEAST_BYTES


class FakeDriver:
    """Implements `drivers.base.Driver`; see the package.

    Args:
        folder: where a hypervisor with a state of its own would keep it. This one has none: all that there is of a
            machine is its process and its folder, so any number of commands may share it.
    """

    name = "fake"
    shared = False
    methods = tuple(CaptureMethod)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Settable, so that a test can find itself on a host with another hypervisor.
        self._version = os.environ.get("LIVECLONE_FAKE_VERSION", "1.0.0")

    async def abilities(self) -> Abilities:
        return Abilities(
            name=self.name,
            version=self._version,
            acceleration=Acceleration.TCG,
            acceleration_reason="there is nothing to accelerate",
            capture_methods=tuple(CaptureMethod),
            read_only_ram=True,
        )

    async def boot(self, plan: BootPlan) -> FakeHandle:
        resolved: Hardware = plan.hardware.replace(
            machine_type=plan.hardware.machine_type or "fake-1",
            cpu=plan.hardware.cpu or "fake",
            acceleration=Acceleration.TCG,
            hypervisor=f"fake {self._version}",
        )
        _make_ram_file(plan.memory, resolved.ram_bytes)
        try:
            return await self._launch(plan, resolved, incoming=False)
        except BaseException:
            Path(plan.memory.path).unlink(missing_ok=True)
            raise

    async def restore(self, plan: RestorePlan) -> FakeHandle:
        here = f"fake {self._version}"
        if plan.hardware.hypervisor != here:
            raise Unsupported(
                f"the snapshot was taken with {plan.hardware.hypervisor}, here is {here}",
                code="other-hypervisor",
                tried="loading device state",
                on=plan.name,
                seen=here,
                next_step=f"start it on a host with {plan.hardware.hypervisor}, or take a new snapshot here",
            )
        handle = await self._launch(plan, plan.hardware, incoming=True)
        try:
            trace.at("clone.started")
            await handle.wire.call("load", 60.0, device_state=plan.device_state)
            trace.at("clone.loaded")
        except BaseException:
            await handle.close()
            await handle.kill()
            raise
        return handle

    async def open(self, machine: Machine, folder: Path) -> FakeHandle:
        if machine.process is None or not process.is_alive(machine.process):
            raise NotFound(
                f"{machine.name} does not run",
                code="not-running",
                tried="finding its process",
                on=machine.name,
                seen="no such process",
                next_step=f"liveclone start {machine.name}",
            )
        return await recovery.connect(machine, machine.process, folder, folder / launch.CURRENT)

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
        layers.flatten(disk, target)

    async def _launch(
        self, plan: BootPlan | RestorePlan, hardware: Hardware, *, incoming: bool
    ) -> FakeHandle:
        if hardware.ram_bytes < LEAST_BYTES:
            raise HypervisorError(
                f"a fake machine needs {LEAST_BYTES} bytes of RAM",
                code="cannot-start",
                tried="starting a fake machine",
                on=plan.name,
                seen=str(hardware.ram_bytes),
            )
        launched = await launch.launch(
            plan.name, plan.folder, hardware, plan.disk, plan.memory, incoming=incoming
        )
        launch.adopt(plan.folder, launched.run)
        return FakeHandle(plan.name, plan.folder, hardware, launched.process, launched.wire)


def _make_ram_file(memory: Memory, size_bytes: int) -> None:
    """Create the empty RAM file of a machine that starts from cold, owner only."""
    try:
        fd = os.open(memory.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreError(
            f"the RAM file cannot be made: {error.strerror}",
            tried="starting a fake machine",
            on=memory.path,
            seen=str(error),
        ) from error
