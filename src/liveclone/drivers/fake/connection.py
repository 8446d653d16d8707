"""What can be done to one fake machine."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import msgspec

from ...errors import Interrupted, NotFound, TimedOut
from ...host import process, unix_socket
from ...model.machine import Hardware, MachineState, ProcessRef
from ...model.network import Nic, Port
from ..base import Captured, CapturePlan, FixedPorts, still_running
from . import launch
from .wire import Wire

STATES = {
    "incoming": MachineState.STARTING,
    "running": MachineState.RUNNING,
    "paused": MachineState.PAUSED,
    "saved": MachineState.PAUSED,
    "crashed": MachineState.CRASHED,
}


class FakeConnection(FixedPorts, ABC):
    """A connection to one machine's process; all of `drivers.base.Handle` but `capture`, which `handle` adds."""

    def __init__(
        self, name: str, folder: Path, hardware: Hardware, process_ref: ProcessRef, wire: Wire
    ) -> None:
        self.name = name
        self.folder = folder
        self.hardware = hardware
        self.process = process_ref
        self.wire = wire

    def successor(self, process_ref: ProcessRef, wire: Wire) -> Self:
        """Return the same machine in another process."""
        return type(self)(self.name, self.folder, self.hardware, process_ref, wire)

    async def state(self) -> MachineState:
        return STATES[(await self.wire.call("status"))["state"]]

    async def pause(self) -> None:
        await self.wire.call("pause")

    async def resume(self) -> None:
        await self.wire.call("resume")

    async def plug(self, nic: Nic, ports: tuple[Port, ...], tap_fd: int | None) -> None:
        published = ports if tap_fd is None else ()  # on a bridge somebody else forwards them
        await self.wire.call("plug", nic=msgspec.to_builtins(nic), ports=msgspec.to_builtins(published))

    async def unplug(self, nic_id: str, deadline_s: float) -> None:
        if not (await self.wire.call("unplug", nic=nic_id))["let_go"]:
            raise TimedOut(
                f"the guest of {self.name} did not let go of {nic_id} within {deadline_s:g} s",
                code="unplug-deadline",
                tried=f"unplugging {nic_id}",
                on=self.name,
                source_state="running, with its NIC",
                next_step="try again",
            )

    async def nics(self) -> tuple[str, ...]:
        return tuple((await self.wire.call("status"))["nics"])

    async def macs(self) -> tuple[str, ...]:
        return tuple((await self.wire.call("status"))["macs"])

    @abstractmethod
    async def capture(self, plan: CapturePlan) -> Captured:
        """See `drivers.base.Handle`."""

    async def agent(self, port: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await connect_port(self.name, self.folder, port)

    async def power_down(self, deadline_s: float) -> None:
        try:
            await self.wire.call("power_button")
        except Interrupted:  # it may have ended before its answer was out
            if not await process.wait(self.process, deadline_s):
                raise
            return
        if not await process.wait(self.process, deadline_s):
            raise still_running(self.name, deadline_s)

    async def kill(self) -> None:
        await process.end(self.process)
        launch.clear(self.folder)

    async def close(self) -> None:
        await self.wire.close()

    # Beyond the contract, for tests: a look into the guest.

    async def look(self) -> dict[str, Any]:
        """Return the guest's registers, counter pages and last count on the disk (`guest.is_consistent` judges)."""
        return await self.wire.call("look")

    async def read(self, file: str) -> str | None:
        """Return the text of a file of the guest, None where there is none."""
        text: str | None = (await self.wire.call("read", file=file))["text"]
        return text

    async def write(self, file: str, text: str) -> None:
        """Let the guest write a file, down to its disk."""
        await self.wire.call("write", file=file, text=text)


async def connect_port(
    name: str, folder: Path, port: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket of the machine's present process ("agent", "exec", "console").

    Raises:
        NotFound: nobody listens (code "not-running").
    """
    try:
        return await unix_socket.open_connection(launch.socket_path(folder, port))
    except OSError as error:
        raise NotFound(
            f"{name} does not run",
            code="not-running",
            tried=f"connecting to the {port} port",
            on=name,
            seen=str(error),
            next_step=f"liveclone start {name}",
        ) from error
