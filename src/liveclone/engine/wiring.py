"""Connect a machine to its network and take it off: tap, NIC, addresses, published ports.

    lease (MAC, address) ── tap on the bridge ── NIC in QEMU ── agent sets the address ── forwarder for ports

A quarantined machine is never connected: `connect` is the only way to a NIC, and it refuses.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from ..drivers.base import Handle
from ..errors import LivecloneError, Refused
from ..host import links, ports, process
from ..model.identity import Cards
from ..model.machine import Machine
from ..model.network import NetworkKind, Nic, Port
from .agent import Agent
from .context import Context

NIC_ID = "nic0"
UNPLUG_DEADLINE_S = 10.0
CONFIGURE_DEADLINE_S = 15.0


def plan_nics(ctx: Context, machine_id: str, kind: NetworkKind, wanted: str = "") -> tuple[Nic, ...]:
    """Take a MAC and an address for a new machine; the address that is wanted, if one is.

    Raises:
        Refused: that address is none of the network's, or no address is left. Conflict: another machine has it.
    """
    if kind is NetworkKind.NONE:
        return ()
    mac, address = ctx.leases.take(machine_id, wanted)
    # QEMU's user network answers names too, at an address of its own; on the bridge nobody does.
    dns = ctx.leases.name_server if kind is NetworkKind.USER else ""
    return (Nic(id=NIC_ID, kind=kind, mac=mac, address=address, gateway=ctx.leases.gateway, dns=dns),)


async def connect(ctx: Context, handle: Handle, machine: Machine, agent: Agent | None) -> Cards:
    """Plug the machine's NICs and let its agent configure them; returns the MACs that are then seen, and by whom.

    Without an agent the guest's own means have to find the address.

    Raises:
        Refused: the machine is in quarantine. Whatever failed, no NIC is left.
    """
    if machine.quarantined:
        raise Refused(
            f"{machine.name} is in quarantine and gets no network",
            code="quarantined",
            tried="plugging a NIC",
            on=machine.name,
            seen="its new identity was not verified",
            next_step=f"liveclone show {machine.name}, then remove it and clone again",
        )
    async with contextlib.AsyncExitStack() as undo:
        for index, nic in enumerate(machine.nics):
            with _tap(ctx, machine, nic, index) as tap_fd:
                await handle.plug(nic, machine.ports, tap_fd)
            undo.push_async_callback(_quietly_unplug, handle, nic.id)
        shown = await configure(machine, agent, urgent=True) if agent else ()
        used = await handle.macs()
        undo.pop_all()
    return Cards(
        given=tuple(sorted(nic.mac for nic in machine.nics)),
        guest=tuple(sorted(shown)),
        host=tuple(sorted(used)),
    )


async def configure(machine: Machine, agent: Agent, *, urgent: bool = False) -> tuple[str, ...]:
    """Let the agent set the addresses of the NICs that are plugged; returns the MACs that the guest shows.

    `urgent` for a new machine; one that serves goes on with that meanwhile.
    """
    nics = [{"mac": n.mac, "address": n.address, "gateway": n.gateway, "dns": n.dns} for n in machine.nics]
    if not nics:
        return ()
    answer = await agent.call(
        "network",
        {"nics": nics, "wait_s": CONFIGURE_DEADLINE_S},
        deadline_s=CONFIGURE_DEADLINE_S,
        repeat=True,
        urgent=urgent,
    )
    return tuple(str(interface["mac"]) for interface in answer["interfaces"])


async def disconnect(handle: Handle, machine: Machine) -> None:
    """Unplug all NICs; those that are gone already are no error.

    Raises:
        TimedOut, HypervisorError: the guest does not let go of one; it is still plugged and works.
    """
    plugged = await handle.nics()
    for nic in machine.nics:
        if nic.id in plugged:
            await handle.unplug(nic.id, UNPLUG_DEADLINE_S)


async def reconnect(ctx: Context, handle: Handle, machine: Machine, agent: Agent | None) -> None:
    """Plug what is missing, with the MAC it had, and configure all; for a source after a snapshot, or a failed one."""
    if machine.quarantined:
        return
    plugged = await handle.nics()
    for index, nic in enumerate(machine.nics):
        if nic.id not in plugged:
            with _tap(ctx, machine, nic, index) as tap_fd:
                await handle.plug(nic, machine.ports, tap_fd)
    if agent is not None:
        await configure(machine, agent)


def choose_ports(kind: NetworkKind, wanted: Sequence[Port]) -> tuple[Port, ...]:
    """Return the ports with real host numbers (0: a free one), or raise Conflict for one that is taken.

    On a bridge the numbers are bound again a moment later by `publish`; a race ends in its Conflict.
    """
    if not wanted:
        return ()
    if kind is NetworkKind.NONE:
        raise Refused(
            "a machine without a network cannot publish ports",
            code="no-network",
            tried="publishing ports",
            next_step="leave the ports out, or choose --network bridge or user",
        )
    with ports.reserve(wanted) as reservation:
        return reservation.ports


def publish(ctx: Context, machine: Machine) -> Machine:
    """Start the forwarder of a machine on a bridge and return the manifest with it; no ports, no forwarder."""
    if machine.network is not NetworkKind.BRIDGE or not machine.ports or machine.process is None:
        return machine
    folder = ctx.layout.machine(machine.id)
    forwarder, numbered = ports.start_forwarder(
        ctx.layout.namespace,
        machine.ports,
        machine.nics[0].ip,
        log=folder / "ports.log",
        manifest=folder / "manifest.json",
        machine=machine.process,
    )
    changed: Machine = machine.replace(port_process=forwarder, ports=numbered)
    return changed


async def unpublish(machine: Machine) -> None:
    """End the machine's forwarder, if it has one."""
    if machine.port_process is not None and process.is_alive(machine.port_process):
        await ports.stop_forwarder(machine.port_process)


def release(ctx: Context, machine: Machine) -> None:
    """Give back what a removed machine had, and remove the network itself when it was the last."""
    ctx.leases.free(machine.id)
    if machine.network is NetworkKind.BRIDGE:
        remove_unused_network(ctx)


def remove_unused_network(ctx: Context) -> None:
    """Remove the network, if it is there, unless a machine is on it."""
    if not any(machine.network is NetworkKind.BRIDGE for machine in ctx.machines.list()):
        links.remove_network(ctx.network_spec())


@contextlib.contextmanager
def _tap(ctx: Context, machine: Machine, nic: Nic, index: int) -> Iterator[int | None]:
    """Open a tap for a NIC on a bridge; our copy is closed at the end, QEMU keeps its own."""
    if nic.kind is not NetworkKind.BRIDGE:
        yield None
        return
    fd = links.open_tap(ctx.network_spec(), machine.id, index)
    try:
        yield fd
    finally:
        os.close(fd)


async def _quietly_unplug(handle: Handle, nic_id: str) -> None:
    with contextlib.suppress(LivecloneError):
        await handle.unplug(nic_id, UNPLUG_DEADLINE_S)
