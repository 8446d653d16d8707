"""One running domain, as far as its capture needs it: run states, NICs, agent ports, the end."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import libvirt

from ...errors import Conflict, HypervisorError, Interrupted, LivecloneError, NotFound, Unsupported
from ...formats import domain_xml
from ...host import process
from ...model.agent import GuestPort
from ...model.machine import Hardware, MachineState, ProcessRef
from ...model.network import Nic, Port
from ..base import Captured, CapturePlan, still_running
from . import nics, plugging, ports, registry, stock_agent
from .link import Link
from .registry import DomainRef

_REMOVED = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED
_REMOVAL_FAILED = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED

_UNDER_WAY = (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
MIGRATION, SNAPSHOT = "a migration", "a snapshot"
_JOBS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: MIGRATION,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: MIGRATION,
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: SNAPSHOT,
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "a backup",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "a save",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "a dump",
}


class Connection(ABC):
    """A connection to one domain; all of `drivers.base.Handle` but `capture`, which `handle` adds.

    `held` is what keeps others from the machine as long as this is open.
    """

    def __init__(
        self,
        folder: Path,
        ref: DomainRef,
        link: Link,
        domain: libvirt.virDomain,
        process_ref: ProcessRef,
        hardware: Hardware,
        held: contextlib.AsyncExitStack,
    ) -> None:
        self.folder, self.ref, self.name = folder, ref, ref.name
        self.link, self.domain = link, domain
        self.process, self.hardware = process_ref, hardware
        self._held = held

    async def call(self, tried: str, function: Any, *args: Any) -> Any:
        """Carry out a call; one that fails because the QEMU has ended is Interrupted, as with any hypervisor."""
        try:
            return await self.link.call(tried, function, *args)
        except (HypervisorError, NotFound) as error:
            if process.is_alive(self.process):
                raise
            raise registry.ended(self.name, tried, error.seen or error.message) from error

    async def read(self) -> domain_xml.Domain:
        """Return the domain as it is now."""
        return domain_xml.parse_domain(await self.dump())

    async def dump(self) -> str:
        return str(await self.call("reading the domain", self.domain.XMLDesc, libvirt.VIR_DOMAIN_XML_SECURE))

    async def state(self) -> MachineState:
        state, _reason = await self.call("asking for its state", self.domain.state)
        if state == libvirt.VIR_DOMAIN_SHUTOFF or not process.is_alive(self.process):
            raise registry.ended(self.name, "asking for its state", "the domain is shut off")
        return registry.STATES.get(state, MachineState.CRASHED)

    async def busy_with(self) -> str:
        """Return what libvirt does with the domain ("a migration"); empty when nothing."""
        stats = await self.call("asking for its job", self.domain.jobStats)
        if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) not in _UNDER_WAY:
            return ""
        return _JOBS.get(stats.get(libvirt.VIR_DOMAIN_JOB_OPERATION), "another job")

    async def check_free(self, tried: str, next_step: str, but: str = "") -> None:
        """As the protocol has it; a job `but` is one of our own."""
        job = await self.busy_with()
        if job in ("", but):
            return
        raise Conflict(
            f"{self.name} is not free for {tried}: {job} of it is under way",
            code="other-job",
            tried=tried,
            on=self.name,
            seen=job,
            source_state="running, not touched",
            next_step=f"when that has ended (virsh domjobinfo {self.name}): {next_step}",
        )

    async def pause(self) -> None:
        if await self.state() is not MachineState.PAUSED:
            await self.call("pausing", self.domain.suspend)

    async def resume(self) -> None:
        if await self.state() is not MachineState.RUNNING:
            await self.call("resuming", self.domain.resume)

    async def nics(self) -> tuple[str, ...]:
        return tuple(nics.id_of(found) for found in (await self.read()).nics)

    async def macs(self) -> tuple[str, ...]:
        return await nics.macs_in_use(self)

    async def plug(self, nic: Nic, ports: tuple[Port, ...], tap_fd: int | None) -> None:
        if nic.id in await self.nics():
            raise HypervisorError(
                f"{self.name} has a NIC {nic.id} already",
                code="nic-exists",
                tried="plugging a NIC",
                on=self.name,
                source_state="running, with its NIC",
            )
        xml = nics.render(self.folder, nic, ports, tap_fd)
        await self.call("plugging a NIC", self.domain.attachDeviceFlags, xml, self._affects)

    async def unplug(self, nic_id: str, deadline_s: float) -> None:
        found = [nic for nic in (await self.read()).nics if nics.id_of(nic) == nic_id]
        if not found:
            raise HypervisorError(
                f"{self.name} has no NIC {nic_id}",
                code="no-nic",
                tried="unplugging a NIC",
                on=self.name,
                seen=", ".join(await self.nics()) or "no NIC at all",
                source_state="running",
            )
        registry.keep_nic(self.folder, nic_id, found[0].xml)
        alias = found[0].alias
        async with self.link.watch(self.domain, _REMOVED, _REMOVAL_FAILED) as watch:
            await self.call(
                "unplugging a NIC", self.domain.detachDeviceAlias, alias, libvirt.VIR_DOMAIN_AFFECT_LIVE
            )
            event = await watch.until(lambda e: e.facts[0] == alias, f"unplugging {nic_id}", deadline_s)
        if event.kind == _REMOVAL_FAILED:
            raise HypervisorError(
                f"the guest of {self.name} refused to let go of {nic_id}",
                code="unplug-refused",
                tried="detaching a device",
                on=self.name,
                seen="libvirt: device removal failed",
                source_state="running, with its NIC",
                next_step="try again when the guest has finished booting",
            )
        if not self.ref.adopted:
            await nics.forget(self, found[0].mac)

    @property
    def _affects(self) -> int:
        """What of a domain that is not ours is changed is changed back; its definition is left alone."""
        live: int = libvirt.VIR_DOMAIN_AFFECT_LIVE
        return live if self.ref.adopted else live | libvirt.VIR_DOMAIN_AFFECT_CONFIG

    @abstractmethod
    async def capture(self, plan: CapturePlan) -> Captured:
        """See `drivers.base.Handle`."""

    async def agent(self, port: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await ports.connect(await self.read(), port)
        except (NotFound, Unsupported) as error:  # the definition of a domain has no sockets
            if process.is_alive(self.process):
                raise
            raise registry.ended(self.name, error.tried, error.seen) from error

    async def ports(self) -> tuple[GuestPort, ...]:
        return await plugging.list_ports(self)

    async def add_ports(self, *, persistent: bool) -> None:
        await plugging.add(self, persistent=persistent)

    async def remove_ports(self) -> None:
        await plugging.remove(self)

    async def ask_stock_agent(self, command: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        return await stock_agent.ask(self, command, arguments, deadline_s)

    async def power_down(self, deadline_s: float) -> None:
        with contextlib.suppress(Interrupted):  # it may have ended before the answer was out
            await self.call(
                "pressing the power button",
                self.domain.shutdownFlags,
                libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
            )
        if not await process.wait(self.process, deadline_s):
            raise still_running(self.name, deadline_s)

    async def kill(self) -> None:
        with contextlib.suppress(LivecloneError, libvirt.libvirtError):
            await asyncio.to_thread(self.domain.destroy)
        await process.end(self.process)

    async def close(self) -> None:
        await self.link.close()
        await self._held.aclose()
