"""Make a machine from an image, start it from cold, and stop it.

A machine from an image gets an identity of its own too, before its network: all machines of one image were one disk.

    run    make (manifest, disk) ── boot ── agent answers ── identify ── NIC, addresses, ports ── ready
    start  boot ── agent answers ── NIC, addresses, ports
    stop   power button, or the end of the process
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .. import trace
from ..drivers.base import BootPlan, Handle
from ..errors import LivecloneError, Refused
from ..host import locks, process
from ..ids import check_name, new_id
from ..model.base import now
from ..model.image import Image
from ..model.machine import Hardware, Machine, MachineState, Memory, MemorySource
from ..model.network import NetworkKind, Port
from ..units import MIB, render_size
from . import agent as agents
from . import capacity, death, disposal, identify, parts, pool, scrub, wiring
from .context import Context
from .holding import hold_machine

LEAST_RAM = 128 * MIB


@dataclass(frozen=True)
class Request:
    """What is asked for. `name` empty: the image's name and a number."""

    image: str
    name: str = ""
    ram_bytes: int = 512 * MIB
    vcpus: int = 1
    network: NetworkKind | None = None
    ports: Sequence[Port] = ()
    labels: dict[str, str] = field(default_factory=dict)
    vmgenid: bool = True


async def run(ctx: Context, request: Request) -> Machine:
    """Make a machine and start it; returns when it is ready (its agent has answered and its network is there).

    Raises:
        Refused, NotFound, Conflict, Unsupported: nothing was made.
        HypervisorError, GuestError, TimedOut: it did not come up; it was removed again, its console is in `seen`.
    """
    image = ctx.images.load(request.image)
    _check(request)
    await pool.with_room(ctx, lambda: capacity.check_boot(ctx, request.ram_bytes))
    machine_id = new_id()
    lock = locks.hold_async(
        ctx.layout.lock(f"machine-{machine_id}"), f"starting {request.name or 'a machine'}", 5.0
    )
    async with lock, AsyncExitStack() as undo:
        undo.push_async_callback(_remove, ctx, machine_id)
        disposal.begin_machine(ctx, machine_id, "run")
        machine = _make_manifest(ctx, request, image, machine_id)
        ctx.machines.create(machine)
        parts.make_overlay(Path(machine.disk), Path(image.disk), machine.disk_bytes)
        trace.at("run.made")
        handle = await _boot(ctx, machine)
        undo.push_async_callback(handle.close)
        machine = _with_process(ctx, machine, handle)
        trace.at("run.booted")
        with death.explained(state="removed again", next_step=f"liveclone run {image.name}"):
            machine = await _come_up(ctx, handle, machine, image.has_agent, first=True)
        ctx.journal(machine.id).end()
        undo.pop_all()
        await handle.close()
    return machine


async def start(ctx: Context, text: str) -> Machine:
    """Start a stopped machine from its disk; one that runs stays as it is, one that is paused goes on.

    Raises:
        Refused: it is in quarantine, or there is not enough memory. Otherwise as `run`; it is stopped again.
    """
    found = ctx.machines.find(text)
    async with hold_machine(ctx, found.id, f"starting {found.name}") as machine:
        if process.is_alive(machine.process):
            handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
            try:
                await handle.resume()
                await _configure_again(ctx, handle, machine)
            finally:
                await handle.close()
            return machine
        if machine.quarantined:
            raise Refused(
                f"{machine.name} is in quarantine and is not started",
                code="quarantined",
                tried="starting a machine",
                on=machine.name,
                next_step=f"liveclone remove {machine.name}",
            )
        await pool.with_room(ctx, lambda: capacity.check_boot(ctx, machine.hardware.ram_bytes))
        machine = await disposal.halt(ctx, machine)
        memory = Memory(path=str(ctx.layout.ram(machine.id)), source=MemorySource.SHARED_HOT)
        machine = machine.replace(memory=memory)
        async with AsyncExitStack() as undo:
            ctx.journal(machine.id).begin("start")
            undo.push_async_callback(_halt, ctx, machine.id)
            handle = await _boot(ctx, machine)
            undo.push_async_callback(handle.close)
            machine = _with_process(ctx, machine, handle)
            trace.at("start.booted")
            with death.explained(state="stopped again", next_step=f"liveclone start {machine.name}"):
                machine = await _come_up(ctx, handle, machine, _has_agent(ctx, machine), first=False)
            ctx.journal(machine.id).end()
            undo.pop_all()
            await handle.close()
    return machine


async def stop(ctx: Context, text: str, *, force: bool, deadline_s: float = 60.0) -> Machine:
    """Shut a machine down by its power button (or end its process, with `force`); a stopped one stays as it is.

    Raises:
        TimedOut: the guest did not shut down in time; it still runs.
    """
    found = ctx.machines.find(text)
    async with hold_machine(ctx, found.id, f"stopping {found.name}") as machine:
        if process.is_alive(machine.process) and not force:
            handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
            try:
                if await handle.state() is MachineState.PAUSED:
                    await handle.resume()
                ctx.progress(f"shutting {machine.name} down", None)
                await handle.power_down(deadline_s)
            finally:
                await handle.close()
        return await disposal.halt(ctx, machine)


def _check(request: Request) -> None:
    if request.name:
        check_name(request.name, "machine name")
    if request.ram_bytes < LEAST_RAM or request.ram_bytes % (2 * MIB):
        raise Refused(
            f"a machine cannot have {render_size(request.ram_bytes)} of RAM",
            code="bad-size",
            tried="reading the size of RAM",
            seen=str(request.ram_bytes),
            next_step=f"give at least {render_size(LEAST_RAM)}, in steps of 2M",
        )
    if not 1 <= request.vcpus <= 64:
        raise Refused(
            f"a machine cannot have {request.vcpus} processors",
            code="bad-count",
            tried="reading the number of processors",
            seen=str(request.vcpus),
            next_step="give 1 to 64",
        )


def _make_manifest(ctx: Context, request: Request, image: Image, machine_id: str) -> Machine:
    network = request.network or ctx.settings.network
    wiring.check_kind(ctx.driver, network)
    name = request.name or _free_name(ctx, image.name)
    check_name(name, "machine name")
    for other in ctx.machines.list():
        if other.name == name:
            raise Refused(
                f"there is a machine named {name} already",
                code="name-taken",
                tried="making a machine",
                on=name,
                seen=f"id {other.id}",
                next_step="choose another name, or remove that one",
            )
    return Machine(
        id=machine_id,
        name=name,
        created_at=now(),
        driver=ctx.driver.name,
        hardware=Hardware(ram_bytes=request.ram_bytes, vcpus=request.vcpus, vmgenid=request.vmgenid),
        image=image.name,
        boot=image.boot,
        disk=str(ctx.layout.machine(machine_id) / "disk.qcow2"),
        disk_bytes=image.disk_bytes,
        memory=Memory(path=str(ctx.layout.ram(machine_id)), source=MemorySource.SHARED_HOT),
        network=network,
        nics=wiring.plan_nics(ctx, machine_id, network),
        ports=wiring.choose_ports(network, request.ports),
        generation=identify.first_generation(),
        labels=request.labels,
    )


async def _boot(ctx: Context, machine: Machine) -> Handle:
    assert machine.memory is not None
    ctx.progress(f"starting {machine.name}", None)
    return await ctx.driver_for(machine.driver).boot(
        BootPlan(
            machine_id=machine.id,
            name=machine.name,
            folder=ctx.layout.machine(machine.id),
            hardware=machine.hardware,
            boot=machine.boot,
            disk=Path(machine.disk),
            memory=machine.memory,
        )
    )


async def _configure_again(ctx: Context, handle: Handle, machine: Machine) -> None:
    """Give a machine that goes on what it may have missed; nothing happens where it has its network, or no agent."""
    with contextlib.suppress(LivecloneError):
        await wiring.reconnect(ctx, handle, machine, None)
        if _has_agent(ctx, machine) and not machine.quarantined:
            async with agents.connect(handle, machine.name) as agent:
                await wiring.configure(machine, agent)


def _with_process(ctx: Context, machine: Machine, handle: Handle) -> Machine:
    changed: Machine = machine.replace(process=handle.process, hardware=handle.hardware)
    ctx.machines.save(changed)
    return changed


async def _come_up(
    ctx: Context, handle: Handle, machine: Machine, has_agent: bool, *, first: bool
) -> Machine:
    """Wait for the agent, give a first identity, connect; a guest without an agent just gets its NIC."""
    if not has_agent:
        _, machine = await wiring.connect(ctx, handle, machine, None)
    else:
        ctx.progress(f"waiting for {machine.name} to boot", None)
        began = time.monotonic()
        async with agents.connect(handle, machine.name) as agent:
            await agent.call("ping", deadline_s=identify.BOOT_DEADLINE_S, repeat=True)
            ctx.progress(f"{machine.name} answers after {time.monotonic() - began:.1f} s", None)
            trace.at("run.answered")
            if first:
                await identify.become(agent, machine, b"\0" * 32, "")
            _, machine = await wiring.connect(ctx, handle, machine, agent)
            with contextlib.suppress(
                LivecloneError
            ):  # it had stopped while they were out; kept for the next command
                await scrub.put_back(ctx, machine, agent)
    machine = wiring.publish(ctx, machine)
    ctx.machines.save(machine)
    return machine


def _has_agent(ctx: Context, machine: Machine) -> bool:
    if not machine.image:  # adopted, or a clone of one: without an agent there were none
        return bool(machine.clone_of)
    try:
        return bool(ctx.images.load(machine.image).has_agent)
    except LivecloneError:
        return bool(machine.boot.kernel)  # the image was removed since; ours have a kernel of their own


def _free_name(ctx: Context, stem: str) -> str:
    taken = {machine.name for machine in ctx.machines.list()}
    number = 1
    while f"{stem[:50]}-{number}" in taken:
        number += 1
    return f"{stem[:50]}-{number}"


async def _remove(ctx: Context, machine_id: str) -> None:
    async def work() -> None:
        await disposal.dispose_id(ctx, machine_id)

    await asyncio.shield(work())


async def _halt(ctx: Context, machine_id: str) -> None:
    async def work() -> None:
        await disposal.halt(ctx, ctx.machines.load(machine_id))
        ctx.journal(machine_id).end()

    await asyncio.shield(work())
