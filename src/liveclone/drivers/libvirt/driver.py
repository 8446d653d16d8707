"""The libvirt driver: abilities of this host, domains from cold, from a snapshot, and found again."""

from __future__ import annotations

import asyncio
import uuid as uuids
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import libvirt

from ...errors import NotFound, Unsupported
from ...formats import domain_new, domain_xml
from ...host import acceleration, flatten, locks
from ...model.machine import Machine
from ...model.snapshot import CaptureMethod
from ..base import Abilities, Adoption, BootPlan, Recovered, RestorePlan
from . import access, adoption, hardware, ports, recovery, registry, restore, tickets
from .handle import LibvirtHandle
from .link import Link, open_link
from .registry import DomainRef

# UEFI variables, disks that an external snapshot keeps: below it much of what we ask for is missing.
OLDEST = (9, 0)
BUSY_DEADLINE_S = 120.0
CONSOLE_LOG = "console.log"


class LibvirtDriver:
    """Implements `drivers.base.Driver` with domains of one libvirt.

    Args:
        uri: empty: libvirt's default.
        roots: folders that are liveclone's own; QEMU, as whichever user it runs, is let through them (access.py).
    """

    name = "libvirt"
    shared = True
    methods: tuple[CaptureMethod, ...] = (CaptureMethod.STREAM,)

    def __init__(self, uri: str = "", roots: Sequence[Path] = ()) -> None:
        self.uri = uri
        self._roots = roots
        self._abilities: Abilities | None = None

    async def abilities(self) -> Abilities:
        if self._abilities is None:
            link = await open_link(self.uri, "this host")
            try:
                self._abilities = await link.call("asking for its version", _examine, link.connection)
            finally:
                await link.close()
        return self._abilities

    async def boot(self, plan: BootPlan) -> LibvirtHandle:
        abilities = await self.abilities()
        async with AsyncExitStack() as undo:
            held, link = await self._hold(plan.folder, plan.name, undo)
            ref = registry.read(plan.folder)
            allowed = await access.find(link, self._roots)
            layers = await access.grant_layers(allowed, [plan.disk])
            if ref is None:
                await restore.check_name_is_free(link, plan.name)
                ref = registry.make_ref(link.uri, plan.name)
                registry.write(plan.folder, ref)
                undo.push_async_callback(restore.forget, link, ref)
                definition = domain_new.render_domain(
                    name=plan.name,
                    uuid=ref.uuid,
                    genid=str(uuids.uuid4()) if plan.hardware.vmgenid else "",
                    hardware=plan.hardware.replace(acceleration=abilities.acceleration),
                    boot=plan.boot,
                    disk=str(plan.disk),
                    layers=layers[plan.disk],
                    console_log=str(plan.folder / CONSOLE_LOG),
                )
                await link.call("defining", link.connection.defineXML, definition)
            domain = await registry.find(link, ref)
            await registry.check_here(link, ref, domain)
            await link.call("starting", domain.create)
            handle = await self._handle(plan.folder, ref, link, held)
            undo.pop_all()
        return handle

    async def restore(self, plan: RestorePlan) -> LibvirtHandle:
        await self._check_family(plan)
        async with AsyncExitStack() as undo:
            held, link = await self._hold(plan.folder, plan.name, undo)
            allowed = await access.find(link, self._roots)
            ref, _domain = await restore.restore(link, plan, plan.folder / CONSOLE_LOG, allowed)
            undo.push_async_callback(restore.forget, link, ref)
            handle = await self._handle(plan.folder, ref, link, held)
            undo.pop_all()
        return handle

    async def open(self, machine: Machine, folder: Path) -> LibvirtHandle:
        ref = _known(machine, folder)
        async with AsyncExitStack() as undo:
            link = await open_link(ref.uri, machine.name)
            undo.push_async_callback(link.close)
            await registry.find_running(
                link, ref
            )  # before we wait: whoever holds one that has ended holds nothing
            held, link = await self._hold(folder, machine.name, undo, link)
            handle = await self._handle(folder, ref, link, held)
            undo.pop_all()
        return handle

    async def connect_port(
        self, machine: Machine, folder: Path, port: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ref = _known(machine, folder)
        link = await open_link(ref.uri, machine.name)
        try:
            domain, _process = await registry.find_running(link, ref)
            xml = await link.call("reading the domain", domain.XMLDesc)
        finally:
            await link.close()
        return await ports.connect(domain_xml.parse_domain(xml), port)

    async def recover(self, machine: Machine, folder: Path, facts: dict[str, Any]) -> Recovered:
        try:
            handle = await self.open(machine, folder)
        except NotFound:
            await self._recover_stopped(machine, folder, facts)
            raise
        try:
            return await recovery.recover(handle, machine, facts)
        finally:
            await handle.close()

    async def _recover_stopped(self, machine: Machine, folder: Path, facts: dict[str, Any]) -> None:
        ref = _known(machine, folder)
        link = await open_link(ref.uri, machine.name)
        try:
            await recovery.recover_stopped(link, ref, facts)
        finally:
            await link.close()

    async def look(self, folder: Path, name: str = "") -> Adoption:
        ref = registry.read(folder)
        link = await open_link(ref.uri if ref else self.uri, name or (ref.name if ref else ""))
        try:
            if ref is None:
                ref = await adoption.find(link, name)
                allowed = await access.find(link, self._roots)
                for root in self._roots:  # its clones would not start: told now, not then
                    await asyncio.to_thread(allowed.open_way, root)
                registry.write(folder, ref)
            return await adoption.look(link, ref)
        finally:
            await link.close()

    def why_full(self, folder: Path) -> str:
        ref = registry.read(folder)
        return ref.why_full if ref is not None else ""

    async def forget(self, folder: Path) -> None:
        ref = registry.read(folder)
        if ref is None or ref.adopted:
            return
        link = await open_link(ref.uri, ref.name)
        try:
            await restore.forget(link, ref)
        finally:
            await link.close()

    async def sweep(self) -> None:
        await asyncio.to_thread(tickets.sweep, tickets.FOLDER)

    async def flatten(self, disk: Path, target: Path) -> None:
        await flatten.flatten(disk, target)

    async def _hold(
        self, folder: Path, name: str, undo: AsyncExitStack, link: Link | None = None
    ) -> tuple[AsyncExitStack, Link]:
        """Keep others from the machine, and connect; both are let go of by `undo`, or with the handle."""
        held = await undo.enter_async_context(AsyncExitStack())
        await held.enter_async_context(
            locks.hold_async(folder / "libvirt.lock", f"using {name}", BUSY_DEADLINE_S)
        )
        if link is None:
            ref = registry.read(folder)
            link = await open_link(ref.uri if ref else self.uri, name)
            undo.push_async_callback(link.close)
        return held, link

    async def _handle(self, folder: Path, ref: DomainRef, link: Link, held: AsyncExitStack) -> LibvirtHandle:
        domain, process_ref = await registry.find_running(link, ref)
        xml = await link.call("reading the domain", domain.XMLDesc)
        versions = await link.call("asking for its version", hardware.versions, link.connection)
        shown = hardware.of(domain_xml.parse_domain(xml), versions)
        return LibvirtHandle(folder, ref, link, domain, process_ref, shown, held)

    async def _check_family(self, plan: RestorePlan) -> None:
        """Device state loads only in the same QEMU family (FACTS.md); of libvirt every later version reads it."""
        abilities = await self.abilities()
        here, taken = f"libvirt {abilities.version}", plan.hardware.hypervisor
        if hardware.family(taken) != hardware.family(here):
            raise Unsupported(
                f"the snapshot was taken with {taken}, here is {here}",
                code="other-hypervisor",
                tried="loading device state",
                on=plan.name,
                seen=here,
                next_step=f"start it on a host with {taken}, or take a new snapshot here",
            )


def _known(machine: Machine, folder: Path) -> DomainRef:
    ref = registry.read(folder)
    if ref is None:
        raise registry.not_running(machine.name, "finding its domain", "it never had one")
    return ref


def _examine(connection: libvirt.virConnect) -> Abilities:
    chosen, reason = acceleration.choose()
    number = connection.getLibVersion()
    version = (number // 1_000_000, number // 1000 % 1000)
    problems = () if version >= OLDEST else (f"libvirt {hardware.dotted(number)} is older than 9.0",)
    return Abilities(
        name="libvirt",
        version=hardware.versions(connection),
        acceleration=chosen,
        acceleration_reason=reason,
        capture_methods=LibvirtDriver.methods,
        read_only_ram=False,
        problems=problems,
    )
