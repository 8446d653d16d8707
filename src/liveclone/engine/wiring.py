"""Connect a machine to its network and take it off: tap, NIC, addresses, published ports.

    lease (MAC, address) ── tap on the bridge ── NIC in QEMU ── agent sets the address ── forwarder for ports

A quarantined machine is never connected: `connect` is the only way to a NIC, and it refuses.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ..drivers.base import Driver, Handle
from ..errors import LivecloneError, Refused, Unsupported
from ..host import links, ports, process
from ..model.identity import Cards
from ..model.machine import Machine
from ..model.network import NetworkKind, Nic, Port
from .agent import Agent
from .context import Context

NIC_ID = "nic0"
UNPLUG_DEADLINE_S = 30.0
CONFIGURE_DEADLINE_S = 60.0  # among 32 clones that start at once, a card was not there after 13
ADDRESS_WAIT_S = 5.0  # for a guest that asks by DHCP


def check_kind(driver: Driver, kind: NetworkKind) -> None:
    """Raise Unsupported for a network that this driver's machines cannot have."""
    if kind is NetworkKind.NONE or (kind is NetworkKind.LIBVIRT) == driver.shared:
        return
    raise Unsupported(
        f"a machine of the {driver.name} driver cannot have the network {kind.value}",
        code="no-such-network",
        tried="choosing a network",
        on=kind.value,
        source_state="not touched",
        next_step="--network libvirt or none" if driver.shared else "--network bridge, user or none",
    )


def plan_nics(
    ctx: Context, machine_id: str, kind: NetworkKind, wanted: str = "", ids: Sequence[str] = (NIC_ID,)
) -> tuple[Nic, ...]:
    """Take a MAC and an address for a new machine; the address that is wanted, if one is.

    Of the hypervisor's own networks there may be several, one for each of `ids`, and addresses are theirs to give.

    Raises:
        Refused: that address is none of the network's, or no address is left. Conflict: another machine has it.
    """
    if kind is NetworkKind.NONE:
        return ()
    if kind is NetworkKind.LIBVIRT:
        return tuple(Nic(id=one, kind=kind, mac=ctx.leases.take_mac(), address=wanted) for one in ids)
    mac, address = ctx.leases.take(machine_id, wanted)
    # QEMU's user network answers names too, at an address of its own; on the bridge nobody does.
    dns = ctx.leases.name_server if kind is NetworkKind.USER else ""
    return (Nic(id=NIC_ID, kind=kind, mac=mac, address=address, gateway=ctx.leases.gateway, dns=dns),)


async def connect(
    ctx: Context, handle: Handle, machine: Machine, agent: Agent | None
) -> tuple[Cards, Machine]:
    """Plug the machine's NICs and let its agent configure them.

    Returns the MACs that are then seen, and by whom, and the manifest, with the addresses that the guest found.

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
        plugged = await handle.nics()  # a domain that libvirt started from its definition has them
        for index, nic in enumerate(machine.nics):
            if nic.id in plugged:
                continue
            with _tap(ctx, machine, nic, index) as tap_fd:
                await handle.plug(nic, machine.ports, tap_fd)
            undo.push_async_callback(_quietly_unplug, handle, nic.id)
        shown = await configure(machine, agent, urgent=True) if agent else []
        used = await handle.macs()
        undo.pop_all()
    cards = see_cards(machine, shown, used)
    return cards, with_addresses(machine, shown) if machine.network is NetworkKind.LIBVIRT else machine


def see_cards(machine: Machine, shown: Sequence[dict[str, Any]], used: Sequence[str]) -> Cards:
    """Return the MACs of a machine's NICs: as given, as its guest has `shown` them, as its hypervisor sees them `used`."""
    return Cards(
        given=tuple(sorted(nic.mac for nic in machine.nics)),
        guest=tuple(sorted(str(one["mac"]) for one in shown)),
        host=tuple(sorted(used)),
    )


async def configure(machine: Machine, agent: Agent, *, urgent: bool = False) -> list[dict[str, Any]]:
    """Let the agent set the addresses of the NICs that are plugged; returns what the guest then shows, NIC by NIC.

    A NIC without an address is the guest's own affair: it is switched on, and given time to find one. `urgent` for a new
    machine; one that serves goes on with that meanwhile.
    """
    nics = [{"mac": n.mac, "address": n.address, "gateway": n.gateway, "dns": n.dns} for n in machine.nics]
    if not nics:
        return []
    args: dict[str, Any] = {"nics": nics, "wait_s": CONFIGURE_DEADLINE_S}
    if machine.network is NetworkKind.LIBVIRT:
        args |= {"address_wait_s": ADDRESS_WAIT_S, "forget": True}
    answer = await agent.call("network", args, deadline_s=CONFIGURE_DEADLINE_S, repeat=True, urgent=urgent)
    shown: list[dict[str, Any]] = answer["interfaces"]
    return shown


async def learn(machine: Machine, agent: Agent) -> Machine:
    """Return the manifest with the addresses that the guest has now, where they are its own affair.

    What was set by hand, or once at boot, would be gone with the NIC that is unplugged for a snapshot.
    """
    if machine.network is not NetworkKind.LIBVIRT or not machine.nics:
        return machine
    answer = await agent.call("interfaces", deadline_s=CONFIGURE_DEADLINE_S, repeat=True)
    return with_addresses(machine, answer["interfaces"])


def with_addresses(machine: Machine, shown: Sequence[dict[str, Any]]) -> Machine:
    """Return the manifest with the addresses that its guest has `shown`."""
    by_mac = {str(one["mac"]): one for one in shown}

    def fill(nic: Nic) -> Nic:
        one = by_mac.get(nic.mac, {})
        address = next(iter(one.get("addresses", ())), "")
        filled: Nic = nic.replace(address=address, gateway=one.get("gateway", nic.gateway))
        return filled

    changed: Machine = machine.replace(nics=tuple(map(fill, machine.nics)))
    return changed


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
