"""Take a machine that the hypervisor has without us into our list, and see again how it is whenever we work on it.

Nothing in it is changed, now or when it is removed from the list. Its owner goes on to start, stop and change it, so what
its manifest says of process, disks and NICs is only what was seen last.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from ..drivers.base import Adoption
from ..errors import NotFound, Refused
from ..host import locks
from ..ids import check_name, new_id
from ..model.base import now
from ..model.machine import Machine, Memory, MemorySource
from ..model.network import NetworkKind
from . import disposal, identify
from .context import Context


async def adopt(ctx: Context, domain: str, name: str = "") -> Machine:
    """Make a domain known under its own name, or another; `domain` is its name or UUID.

    Raises:
        NotFound: there is no such domain. Unsupported: the driver has none but our own machines.
        Refused: a name that is taken or none; a domain that is known already, or that could not be cloned.
    """
    driver = ctx.driver
    machine_id = new_id()
    lock = locks.hold_async(ctx.layout.lock(f"machine-{machine_id}"), f"adopting {domain}", 5.0)
    async with lock, AsyncExitStack() as undo:
        undo.push_async_callback(disposal.dispose_id, ctx, machine_id)
        disposal.begin_machine(ctx, machine_id, "adopt")
        found = await driver.look(ctx.layout.machine(machine_id), domain)
        name = name or found.name
        _check(ctx, found, name, domain)
        first = found.disks[0]
        machine = Machine(
            id=machine_id,
            name=name,
            created_at=now(),
            driver=driver.name,
            hardware=found.hardware,
            image="",
            boot=found.boot,
            disk=first.path,
            disk_bytes=first.size_bytes,
            network=NetworkKind.LIBVIRT,
            generation=identify.first_generation(),
            domain=found.uuid,
            adopted=True,
        )
        machine = _as_seen(machine, found)
        ctx.machines.create(machine)
        ctx.journal(machine_id).end()
        undo.pop_all()
    return machine


async def refresh(ctx: Context, machine: Machine) -> Machine:
    """Return the manifest of a machine as it is now, and write it down; the caller holds it.

    A domain that is gone is a machine that is stopped.
    """
    seen = await look_again(ctx, machine)
    if seen != machine:
        ctx.machines.save(seen)
    return seen


async def look_again(ctx: Context, machine: Machine) -> Machine:
    """Return the manifest of a machine as it is now, and change nothing."""
    driver = ctx.driver_for(machine.driver)
    if not driver.shared:
        return machine
    try:
        found = await driver.look(ctx.layout.machine(machine.id))
    except NotFound:
        stopped: Machine = machine.replace(process=None)
        return stopped
    return _as_seen(machine, found)


def _as_seen(machine: Machine, found: Adoption) -> Machine:
    """Return the manifest with what others may have changed; of a machine of ours only its process is."""
    runs = found.process is not None
    memory = machine.memory or (Memory(path="", source=MemorySource.ANONYMOUS) if runs else None)
    changed: Machine = machine.replace(process=found.process, memory=memory if runs else None)
    if machine.adopted and found.disks:
        known = {nic.id: nic for nic in machine.nics}
        changed = changed.replace(
            hardware=found.hardware,
            disk=found.disks[0].path,
            disk_bytes=found.disks[0].size_bytes,
            disks=found.disks,
            nics=tuple(known.get(nic.id, nic) for nic in found.nics),
        )
    return changed


def _check(ctx: Context, found: Adoption, name: str, domain: str) -> None:
    check_name(name, "machine name")
    for other in ctx.machines.list():
        if other.domain == found.uuid:
            raise _refuse(f"{domain} is known already, as {other.name}", "already-adopted", domain, other.id)
        if other.name == name:
            raise _refuse(f"there is a machine named {name} already", "name-taken", name, other.id)
    problems = found.obstacles or (() if found.disks else ("it has no disk that it writes",))
    if problems:
        raise _refuse(
            f"{domain} cannot be cloned: {problems[0]}", "cannot-clone", domain, "; ".join(problems)
        )
    for disk in found.disks:
        if not Path(disk.path).is_absolute():
            raise _refuse(f"{domain} has a disk that is no file", "cannot-clone", domain, disk.path)


def _refuse(message: str, code: str, on: str, seen: str) -> Refused:
    return Refused(
        message,
        code=code,
        tried="adopting a domain",
        on=on,
        seen=seen,
        source_state="not touched",
        next_step="docs/libvirt.md" if code == "cannot-clone" else "liveclone list",
    )
