"""The clone's own identity: it runs without any card until its evidence holds.

    restored, no card ── runs ── agent: identity, parameters ── verified? ── Nova's cards ── agent: addresses ── seen?
                                                                   └ no: the build ends, with what speaks against it

The agent only reports; this host judges, by liveclone's rules, against what the sealed description of the state has of the
source, and against the siblings that this host knows. A snapshot without an identity (no agent answered in its source)
cannot be verified: its servers are refused, unless [liveclone]/unverified_clones lets them start, marked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver as nova_libvirt_driver
from oslo_log import log as logging

from liveclone.drivers.libvirt import driver as libvirt_driver
from liveclone.drivers.libvirt.handle import LibvirtHandle
from liveclone.engine import agent as agents
from liveclone.engine import identify, wiring
from liveclone.engine.agent import Agent
from liveclone.model.identity import Evidence
from liveclone.model.machine import Machine
from liveclone_nova import domains, evidence, parameters
from liveclone_nova.conf import CONF
from liveclone_nova.seal import Description, Identity

LOG = logging.getLogger(__name__)

MARK = "liveclone_identity"  # in the server's system metadata
UNVERIFIED, VERIFIED = "unverified", "verified"


def find_problems(description: Description) -> list[str]:
    """Return why a server from this state is not started: nobody could verify it, and the operator wants no such."""
    if description.identity is not None or CONF.liveclone.unverified_clones:
        return []
    return [
        f"its identity cannot be verified ({description.no_identity or 'the state has none'}), and "
        "[liveclone]/unverified_clones is off"
    ]


def mark_unverified(
    context: nova_context.RequestContext, instance: objects.Instance, description: Description
) -> None:
    """Mark a server that starts with its source's identity, and tell its owner."""
    LOG.warning("The server starts with the identity of its source", instance=instance)
    instance.system_metadata[MARK] = UNVERIFIED
    reason = description.no_identity or "its state has no identity"
    evidence.tell(context, instance, f"Unverified: it starts as its source was: {reason}")


@dataclass(frozen=True)
class Settling:
    """A server that is restored, stands still and has no card.

    Attributes:
        folder: of the server; its `domain.json` is there. state: of the state, with the family's book.
        attach: gives it a card of Nova's.
    """

    driver: nova_libvirt_driver.LibvirtDriver
    context: nova_context.RequestContext
    instance: objects.Instance
    identity: Identity
    folder: Path
    state: Path
    network_info: Any
    attach: Callable[[Any], None]

    async def carry_out(self) -> None:
        """Let it run, become a machine of its own, and have its cards when that is verified.

        Raises:
            GuestError, TimedOut: it did not, or its agent was silent; the caller ends it. It never had a card, unless
                one was not seen as it was given.
        """
        given = parameters.parameters_of(self.instance)
        hypervisor = libvirt_driver.LibvirtDriver(self.driver._host._uri)
        machine = await self._make_machine(hypervisor)
        book = await asyncio.to_thread(evidence.open_book, self.state, self.identity)
        handle = await hypervisor.open(machine, self.folder)
        try:
            async with agents.connect(handle, machine.name) as agent:
                await handle.resume()
                key = bytes.fromhex(self.identity.key)
                reported = await identify.become(agent, machine, key, self.identity.renewed.snapshot, given)
                existing = self.driver.list_instance_uuids()
                judged = book.judge_and_record(reported, self.identity.items, existing)
                self._demand(machine, judged)
                judged = await self._connect(handle, agent, machine, judged)
                book.record(judged)
                self._demand(machine, judged)
        finally:
            await handle.close()
        self.instance.system_metadata[MARK] = VERIFIED
        evidence.keep(book, self.folder, judged)
        self._tell(judged)

    async def _make_machine(self, hypervisor: libvirt_driver.LibvirtDriver) -> Machine:
        found = await hypervisor.look(self.folder, self.instance.uuid)
        machine: Machine = domains.machine_of(self.instance.uuid, found).replace(
            name=self.instance.hostname,
            generation=identify.first_generation().replace(counter=1),
            nics=tuple(parameters.nic_of(vif) for vif in self.network_info or ()),
        )
        return machine

    async def _connect(
        self, handle: LibvirtHandle, agent: Agent, machine: Machine, judged: Evidence
    ) -> Evidence:
        """Give it its cards and addresses; return the evidence with what is seen of them."""
        for vif in self.network_info or ():
            await asyncio.to_thread(self.attach, vif)
        shown = await wiring.configure(machine, agent, urgent=True)
        cards = wiring.see_cards(machine, shown, await handle.macs())
        # What Neutron gives to it may be what its source had: that one may be gone.
        given = {nic.address for nic in machine.nics}
        forbidden = tuple(address for address in self.identity.addresses if address not in given)
        return identify.with_cards(wiring.with_addresses(machine, shown), judged, cards, forbidden)

    def _demand(self, machine: Machine, judged: Evidence) -> None:
        if not judged.verified:
            self._tell(judged)
            raise identify.not_verified(machine, judged)

    def _tell(self, judged: Evidence) -> None:
        evidence.tell(self.context, self.instance, evidence.summarize(judged), judged)
