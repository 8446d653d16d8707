"""The guest of a source, while it is captured: what it was (its clones are compared with that), and that it too is renewed.

    agent there? ── prepare: identity as digests, hooks ── [captured] ── addresses ── resume: new generation, fresh entropy

Whether there is an agent libvirt knows: it sees whether somebody in the guest has opened our port. Without one a guest is
captured all the same, and the description of the state says why it has no identity (`identity` is the other half).

What the memory image holds of the kernel's random generator, the source goes on with until it is renewed. So one that has an
agent and could not be renewed is not captured: nobody gets to see the image.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator

from oslo_log import log as logging

from liveclone.drivers.libvirt.handle import LibvirtHandle
from liveclone.engine import agent as agents
from liveclone.engine import identify, wiring
from liveclone.engine.agent import Agent
from liveclone.errors import LivecloneError, TimedOut
from liveclone.identity.evidence import KEY_BYTES
from liveclone.model.identity import Evidence, Generation, ItemReport
from liveclone.model.machine import Machine
from liveclone.model.network import Nic
from liveclone_nova.guest_devices import PORT
from liveclone_nova.seal import Identity

LOG = logging.getLogger(__name__)

_PING_DEADLINE_S = 10.0  # of an agent that has opened its port; on a busy host it may wait for the processor


@contextlib.asynccontextmanager
async def open_source(handle: LibvirtHandle, machine: Machine, snapshot: str) -> AsyncIterator[Source]:
    """Connect to the guest's agent for the block, if there is one; in a clone the connection simply goes on.

    Args:
        machine: with the NICs that it has. snapshot: the id of the image it is captured into.
    """
    async with contextlib.AsyncExitStack() as held:
        channel = (await handle.read()).find_channel(PORT)
        agent, problem = None, ""
        if channel is None:
            problem = f"the guest has no port {PORT}"
        elif channel.state == "disconnected":
            problem = f"nobody in the guest has opened the port {PORT}"
        else:
            agent = await held.enter_async_context(agents.connect(handle, machine.name))
            try:
                present = await agent.call("ping", deadline_s=_PING_DEADLINE_S, repeat=True)
            except TimedOut as error:
                agent, problem = None, error.message
            else:
                machine = machine.replace(generation=Generation(**present["generation"]))
        yield Source(machine, snapshot, agent, problem)


class Source:
    """The guest of one capture. Without an agent nothing is asked of it; `problem` says why there is none."""

    def __init__(self, machine: Machine, snapshot: str, agent: Agent | None, problem: str) -> None:
        self.problem = problem
        self.machine = machine
        self._agent, self._snapshot = agent, snapshot
        self._key = secrets.token_bytes(KEY_BYTES)
        self._items: tuple[ItemReport, ...] = ()
        self._is_connected = True
        self._renewed: Evidence | None = None
        self._failure: LivecloneError | None = None

    async def prepare(self) -> None:
        """Let the guest prepare, and note its identity and its addresses.

        Raises:
            GuestError, TimedOut: it cannot; `go_on` is to be called.
        """
        if self._agent is None:
            return
        self._items = await identify.observe(self._agent, self._key, self._snapshot)
        self.machine = await wiring.learn(self.machine, self._agent)
        self._is_connected = False

    async def reconnect(self) -> None:
        """Let the agent give the cards, which are there again, the addresses that they had; what fails is only told."""
        if self._agent is None or self._is_connected:
            return
        try:
            await wiring.configure(self.machine, self._agent)
            self._is_connected = True
        except LivecloneError as error:
            LOG.warning("The guest's addresses were not given back: %s", error.fields())

    async def go_on(self) -> None:
        """Renew the guest, whatever became of the capture. What fails is raised by `describe`."""
        if self._agent is None:
            return
        await self.reconnect()
        try:
            self._renewed = await self._renew()
        except LivecloneError as error:
            LOG.error("The guest was not renewed after its live snapshot: %s", error.fields())
            self._failure = error

    async def go_on_after_death(self, nics: tuple[Nic, ...]) -> None:
        """Renew a guest whose capture was cut short; these are its cards, with the addresses that were noted."""
        self.machine = self.machine.replace(nics=nics)
        self._is_connected = not nics
        await self.go_on()

    def describe(self) -> Identity | None:
        """Return what clones are compared with; None without an agent.

        Raises:
            GuestError, TimedOut: the source could not be renewed.
        """
        if self._failure is not None:
            raise self._failure
        if self._renewed is None:
            return None
        return Identity(
            key=self._key.hex(),
            items=tuple(item.replace(details={}, took_ms=0.0) for item in self._items),
            renewed=self._renewed,
            addresses=tuple(nic.address for nic in self.machine.nics if nic.address),
        )

    async def _renew(self) -> Evidence:
        assert self._agent is not None
        self.machine = self.machine.replace(generation=identify.next_generation(self.machine.generation))
        evidence, warnings = await identify.refresh(self._agent, self.machine, self._key, self._snapshot)
        for warning in warnings:
            LOG.warning("%s", warning)
        return evidence
