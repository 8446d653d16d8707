"""One machine that QEMU runs, as far as the ways of capture need it: run states, NICs, agent ports, the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from ...errors import HypervisorError, Interrupted, LivecloneError, NotFound, Unsupported
from ...host import process, unix_socket
from ...model.machine import Hardware, MachineState, ProcessRef
from ...model.network import Nic, Port
from ..base import Captured, CapturePlan, FixedPorts, still_running
from . import argv, launch
from .session import Session

AGENT = "agent"

# QEMU's RunState (qapi/run-state.json) in our words.
STATES = {
    "running": MachineState.RUNNING,
    "suspended": MachineState.RUNNING,
    "paused": MachineState.PAUSED,
    "debug": MachineState.PAUSED,
    "save-vm": MachineState.PAUSED,
    "postmigrate": MachineState.PAUSED,
    "finish-migrate": MachineState.PAUSED,
    "prelaunch": MachineState.STARTING,
    "inmigrate": MachineState.STARTING,
    "restore-vm": MachineState.STARTING,
    "shutdown": MachineState.STOPPED,
    "guest-panicked": MachineState.CRASHED,
    "internal-error": MachineState.CRASHED,
    "io-error": MachineState.PAUSED,  # it wrote where there was no room, and goes on when told to
    "watchdog": MachineState.CRASHED,
    "colo": MachineState.PAUSED,
}

# Between the event "completed" and the end of the migration thread; fractions of a millisecond on an idle host.
SETTLE_S = 10.0


class Connection(FixedPorts, ABC):
    """A connection to one QEMU; all of `drivers.base.Handle` but `capture`, which `handle` adds."""

    def __init__(
        self, name: str, folder: Path, hardware: Hardware, process_ref: ProcessRef, session: Session
    ) -> None:
        self.name = name
        self.folder = folder
        self.hardware = hardware
        self.process = process_ref
        self.session = session
        self._early: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def successor(self, process_ref: ProcessRef, session: Session) -> Self:
        """Return the same machine in another process."""
        return type(self)(self.name, self.folder, self.hardware, process_ref, session)

    async def state(self) -> MachineState:
        status = await self.session.call("query-status")
        return STATES.get(status["status"], MachineState.CRASHED)

    async def pause(self) -> None:
        await self.session.call("stop")

    async def resume(self) -> None:
        try:
            await self.session.call("cont")
        except HypervisorError:
            # QEMU tells that a migration is over a moment before it lets go of the machine, and has no event for
            # that moment. Each question takes the lock that it waits for, so this does not spin.
            until = time.monotonic() + SETTLE_S
            while await self._is_migrating() and time.monotonic() < until:
                pass
            await self.session.call("cont")

    async def _is_migrating(self) -> bool:
        return bool((await self.session.call("query-status"))["status"] == "finish-migrate")

    async def nics(self) -> tuple[str, ...]:
        found = []
        for bus in await self.session.call("query-pci"):
            for device in bus["devices"]:
                behind = device.get("pci_bridge", {}).get("devices", [])
                found += [d["qdev_id"] for d in behind if d.get("qdev_id")]
        return tuple(found)

    async def macs(self) -> tuple[str, ...]:
        return tuple(found["main-mac"] for found in await self.session.call("query-rx-filter"))  # QEMU 1.6

    async def plug(self, nic: Nic, ports: tuple[Port, ...], tap_fd: int | None) -> None:
        slot = await self._free_slot()
        tap_name = None
        async with contextlib.AsyncExitStack() as undo:
            if tap_fd is not None:
                tap_name = f"tap-{nic.id}"
                await self.session.lend(tap_fd, tap_name)
                undo.push_async_callback(self._quietly, "closefd", fdname=tap_name)
            await self.session.call("netdev_add", **argv.render_netdev(nic, ports, tap_name))
            undo.pop_all()  # the descriptor belongs to the backend now
            undo.push_async_callback(self._quietly, "netdev_del", id=f"net-{nic.id}")
            await self.session.call("device_add", **argv.render_nic(nic, slot))
            undo.pop_all()

    async def unplug(self, nic_id: str, deadline_s: float) -> None:
        async with self.session.watch("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR") as watch:
            await self.session.call("device_del", id=nic_id)
            event = await watch.until(
                lambda e: e["data"].get("device") == nic_id, f"unplugging {nic_id}", deadline_s
            )
        if event["event"] != "DEVICE_DELETED":
            raise HypervisorError(
                f"the guest of {self.name} refused to let go of {nic_id}",
                code="unplug-refused",
                tried="QMP device_del",
                on=self.name,
                seen=event["event"],
                source_state="running, with its NIC",
                next_step="try again when the guest has finished booting",
            )
        await self.session.call("netdev_del", id=f"net-{nic_id}")

    @abstractmethod
    async def capture(self, plan: CapturePlan) -> Captured:
        """See `drivers.base.Handle`."""

    async def agent(self, port: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if port == AGENT and self._early is not None:
            early, self._early = self._early, None
            return early
        return await connect_port(self.name, self.folder, port)

    async def connect_early(self, run: Path) -> None:
        """Connect to the agent port of a process that waits for its device state; `agent` returns that connection.

        A port that was connected when the state was saved, and is when it is loaded, stays so for the guest. Else its
        kernel has to hear of the new connection first, and drops what the agent answers before.

        Raises:
            Interrupted: that process has ended.
        """
        try:
            self._early = await unix_socket.open_connection(run / AGENT)
        except OSError as error:
            raise self.session.lost("connecting to its agent port", error) from error

    async def power_down(self, deadline_s: float) -> None:
        try:
            await self.session.call("system_powerdown")
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
        if self._early is not None:
            self._early[1].close()
            self._early = None
        await self.session.close()

    async def _free_slot(self) -> int:
        taken = await self.nics()
        if len(taken) < argv.NIC_SLOTS:
            used = await self._used_slots()
            return min(set(range(argv.NIC_SLOTS)) - used)
        raise Unsupported(
            f"{self.name} has no free slot for another NIC",
            code="no-nic-slot",
            tried="plugging a NIC",
            on=self.name,
            seen=f"{len(taken)} of {argv.NIC_SLOTS} slots taken",
            next_step="give the machine fewer networks",
        )

    async def _used_slots(self) -> set[int]:
        used = set()
        for bus in await self.session.call("query-pci"):
            for device in bus["devices"]:
                if device.get("qdev_id", "").startswith("port") and device["pci_bridge"].get("devices"):
                    used.add(int(device["qdev_id"].removeprefix("port")))
        return used

    async def _quietly(self, command: str, **arguments: Any) -> None:
        with contextlib.suppress(LivecloneError):
            await self.session.call(command, **arguments)


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
