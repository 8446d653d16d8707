"""What a hypervisor must offer.

    Driver ── boot ─────────┐
           ── restore ──────┼──> Handle ── pause resume plug unplug capture agent ... close
           ── open ─────────┘      (one connection to one machine's process; one owner)

Three implementations are held to one contract kit (tests/contract): `qemu`, `libvirt`, `fake`. The
engine decides *what* happens and in which order, and holds the undo; a driver knows *how*. A driver reads
and writes only the paths that a plan gives to it. Everything here may raise HypervisorError (it failed;
the message says what the hypervisor said), TimedOut, or NotFound (the process is gone); what is left behind is
said with each method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import TimedOut, Unsupported
from ..model.agent import GuestPort
from ..model.disk import Disk
from ..model.machine import Acceleration, Boot, Hardware, Machine, MachineState, Memory, ProcessRef
from ..model.network import Nic, Port
from ..model.snapshot import CaptureMethod

# Short names of the ports of liveclone's agent: org.liveclone.agent.0, org.liveclone.exec.0.
AGENT_PORTS = ("agent", "exec")


@dataclass(frozen=True)
class Abilities:
    """What this hypervisor can do on this host, as data."""

    name: str
    version: str  # "10.0.2"
    acceleration: Acceleration
    acceleration_reason: str
    capture_methods: tuple[CaptureMethod, ...]
    read_only_ram: bool  # clones map the memory image so that they cannot write it
    problems: tuple[str, ...] = ()  # why it cannot be used at all; empty when it can


@dataclass(frozen=True)
class BootPlan:
    """A machine from cold. The RAM file does not exist yet; the driver makes it, `hardware.ram_bytes` long."""

    machine_id: str
    name: str
    folder: Path  # logs, sockets
    hardware: Hardware  # machine_type, cpu, acceleration may be empty: the driver resolves and returns them
    boot: Boot
    disk: Path
    memory: Memory


@dataclass(frozen=True)
class RestorePlan:
    """A machine from a snapshot: memory image mapped private, device state loaded, paused at that instant."""

    machine_id: str
    name: str
    folder: Path
    hardware: Hardware
    boot: Boot
    disk: Path
    memory: Memory
    device_state: Path
    ignore_shared: bool
    disks: tuple[Disk, ...] = ()  # all of them, `disk` first; empty: it is the only one


@dataclass(frozen=True)
class DiskCapture:
    """A disk at a capture: `present` is its top layer now, `layer` where the machine writes next.

    Ours: `frozen` is another name (hard link) of `present`, and `layer` stands on it, is there already, and stays. Of a
    machine that was adopted: the driver copies the disk into `frozen`, and `layer`, which it makes, is gone at the end,
    unless it is to be kept.
    """

    target: str  # the hypervisor's name for it; empty where it has none
    present: Path
    format: str
    size_bytes: int  # as the guest sees it
    frozen: Path
    layer: Path


@dataclass(frozen=True)
class Adoption:
    """A machine that the hypervisor has without us, as it is now. `obstacles`: why it could not be cloned."""

    uuid: str
    name: str
    hardware: Hardware
    boot: Boot
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    process: ProcessRef | None  # None: it does not run
    obstacles: tuple[str, ...] = ()


async def _nothing() -> None:
    """Do nothing."""


@dataclass
class CapturePlan:
    """Where a capture writes, and whom it tells how far it is.

    `note(step, **facts)` is called at each named step, in the pause window too, and makes the facts durable
    before the next step, so that a later process can finish or undo (engine/recover.py). A capture that has a point of
    no return says "committing" before it: from then on the caller does not cancel it. Before the guest runs on the next
    layer `on_next_disk=True` is noted: should every process of the machine die, each disk ends with its next layer for as
    long as that file is there. So whoever writes it back into the layer below removes it, and a capture that fails
    behind "pausing" leaves it where it could not be written back. `before_pause` is awaited when all that takes time
    is prepared, so that what the guest loses for the capture it loses for a moment only; `after_pause`, which raises
    nothing, by a driver that has much to do yet when the machine runs again.
    """

    method: CaptureMethod
    machine: Machine
    folder: Path  # the machine's
    device_state: Path  # to be written
    memory: Path  # to be written by background and stream; for handover another name of the source's RAM file
    frozen_disk: Path  # of the first disk; all that is said of a machine that is ours and has no other
    next_disk: Path  # the same
    deadline_s: float = 60.0
    note: Callable[..., None] = field(default=lambda step, **facts: None)
    before_pause: Callable[[], Awaitable[None]] = field(default=_nothing)  # the engine unplugs the NICs here
    after_pause: Callable[[], Awaitable[None]] = field(
        default=_nothing
    )  # ... and plugs them again, or at the end
    # All of them; empty: the machine is ours, and those above are its only one.
    disks: tuple[DiskCapture, ...] = ()
    keep_overlay: bool = False  # a machine that was adopted writes the next layers from now on
    # Told how far it is, by any thread: (what, fraction).
    tell: Callable[[str, float | None], None] = field(default=lambda what, fraction: None)

    @property
    def present_memory(self) -> Memory:
        """What the machine's RAM is mapped from before the capture."""
        assert self.machine.memory is not None, "a running machine has RAM"
        return self.machine.memory


@dataclass(frozen=True)
class Captured:
    """What a capture left: the source runs again, in `handle`'s process (another one after a handover)."""

    handle: Handle
    memory: Memory  # what the source's RAM is mapped from now
    ignore_shared: bool
    devices: tuple[str, ...]
    pause_ns: int
    steps_ms: dict[str, float]


@dataclass(frozen=True)
class Recovered:
    """What was found, and settled, after a capture had died: the one process that is the machine now, running."""

    process: ProcessRef
    memory: Memory
    on_next_disk: bool  # the machine writes the layers that were to come after the capture, if they are there


class Handle(Protocol):
    """A connection to one machine's process. Close it; closing never harms the machine."""

    process: ProcessRef
    hardware: Hardware  # as resolved

    async def state(self) -> MachineState:
        """Return what the machine is doing now."""

    async def check_free(self, tried: str, next_step: str) -> None:
        """Fail if somebody has the hypervisor do with the machine what a capture cannot run beside (a migration).

        Raises:
            Conflict: says what (code "other-job"). The machine was not touched.
        """

    async def pause(self) -> None:
        """Stop the processors; a machine that stands still stays so."""

    async def resume(self) -> None:
        """Let the processors run; a running machine stays so."""

    async def plug(self, nic: Nic, ports: tuple[Port, ...], tap_fd: int | None) -> None:
        """Add `nic`. `tap_fd` is an open tap for a bridge; the caller keeps and closes its own copy.

        On failure nothing of the NIC is left.
        """

    async def unplug(self, nic_id: str, deadline_s: float) -> None:
        """Remove a NIC and its backend; returns when the guest has let go of it.

        Raises:
            TimedOut: the guest did not let go in time; the NIC is still there and works.
        """

    async def nics(self) -> tuple[str, ...]:
        """Return the ids of the NICs that the machine has just now."""

    async def macs(self) -> tuple[str, ...]:
        """Return the MAC that each NIC uses: the guest may have set another than it was plugged with."""

    async def capture(self, plan: CapturePlan) -> Captured:
        """Capture memory, device state and disk at one instant while the machine goes on.

        Whatever fails, the machine runs on in the process it had, on the disk layer it had (`next_disk` may be
        left as a file; it is not in use). After a handover this handle is closed and `Captured.handle` is the owner's.
        """

    async def agent(self, port: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a virtio-serial port of the guest by its short name ("agent", "exec")."""

    async def ports(self) -> tuple[GuestPort, ...]:
        """Return those of the agent's ports that there are."""

    async def add_ports(self, *, persistent: bool) -> None:
        """Plug those that are missing; `persistent`: so that they are there after a cold start, too.

        On failure none of them is left. Where all are there nothing happens.
        """

    async def remove_ports(self) -> None:
        """Take away what `add_ports` has plugged, and nothing else."""

    async def ask_stock_agent(self, command: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        """Ask the QEMU guest agent that the guest may have from its distribution; return its answer.

        Raises:
            Unsupported: there is none (code "no-stock-agent"). GuestError: it refuses. TimedOut: it does not answer.
        """

    async def power_down(self, deadline_s: float) -> None:
        """Ask the guest to shut down and wait until the process is gone.

        Raises:
            TimedOut: it still runs.
        """

    async def kill(self) -> None:
        """End the process at once and wait until it is gone. Its files stay."""

    async def close(self) -> None:
        """Let go of the connection."""


class Driver(Protocol):
    """A hypervisor on this host."""

    name: str
    shared: bool  # others, too, start and stop its machines
    methods: tuple[CaptureMethod, ...]

    async def abilities(self) -> Abilities:
        """Return what it can do here; cheap after the first call."""

    async def boot(self, plan: BootPlan) -> Handle:
        """Start a machine from cold; it runs when this returns. On failure no process is left."""

    async def restore(self, plan: RestorePlan) -> Handle:
        """Start a machine from a snapshot; it stands still when this returns. On failure no process is left."""

    async def open(self, machine: Machine, folder: Path) -> Handle:
        """Connect to a running machine; a second connection waits until the first is closed.

        Raises:
            NotFound: its process is gone (code "not-running").
        """

    async def connect_port(
        self, machine: Machine, folder: Path, port: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port of a machine ("exec", "console") without a handle, so also while another holds one.

        A port serves one connection at a time; who shares it takes turns. The connection ends when a handover
        replaces the machine's process: then connect again.

        Raises:
            NotFound: nobody listens (code "not-running").
        """

    async def recover(self, machine: Machine, folder: Path, facts: dict[str, Any]) -> Recovered:
        """After a capture died: leave exactly one process, running.

        `facts` is what `CapturePlan.note` was given. Never starts anything, never resumes two writers of one disk.

        Raises:
            NotFound: no process is left (code "not-running"); its sockets are cleared.
        """

    async def look(self, folder: Path, name: str = "") -> Adoption:
        """Return how a machine is now that others may start, stop and change too.

        Args:
            name: of one that is to be adopted: the hypervisor's own name for it, or its UUID. It is remembered in `folder`.

        Raises:
            NotFound: the hypervisor has no such machine (code "no-domain"), or it has gone to another host ("migrated").
            Unsupported: it has none but ours (code "cannot-adopt").
        """

    def why_full(self, folder: Path) -> str:
        """Return why a clone did not start on the memory image itself but read all of it; empty for one that did."""

    async def forget(self, folder: Path) -> None:
        """Let go of what the hypervisor keeps of a machine elsewhere than in its folder (libvirt: the domain).

        A process that is left ends. What the machine had before it was adopted stays. Twice does no harm.
        """

    async def sweep(self) -> None:
        """Remove what commands that died have left outside all folders of machines. Harmless at any time."""

    async def flatten(self, disk: Path, target: Path) -> None:
        """Write the disk whose frozen top layer is `disk` to the new file `target`, as one layer that stands on nothing.

        Only what the guest would read of it. Fails with LivecloneError; the caller removes what there is of `target`.
        """


def still_running(name: str, deadline_s: float) -> TimedOut:
    return TimedOut(
        f"{name} did not shut down within {deadline_s:g} s",
        code="still-running",
        tried="pressing the power button",
        on=name,
        source_state="running",
        next_step=f"liveclone stop --force {name}",
    )


class FixedPorts:
    """The part of a Handle whose machines are ours alone: the agent's ports from the start, no other agent, no other job."""

    name: str

    async def check_free(self, tried: str, next_step: str) -> None:
        pass

    async def ports(self) -> tuple[GuestPort, ...]:
        return tuple(GuestPort(name=name, live=True, persistent=True) for name in AGENT_PORTS)

    async def add_ports(self, *, persistent: bool) -> None:
        """All are there."""

    async def remove_ports(self) -> None:
        """None was added."""

    async def ask_stock_agent(self, command: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        raise no_stock_agent(self.name, "this hypervisor's machines have no port for it")


def no_stock_agent(name: str, seen: str) -> Unsupported:
    return Unsupported(
        f"{name} has no QEMU guest agent that answers",
        code="no-stock-agent",
        tried="asking the QEMU guest agent",
        on=name,
        seen=seen,
        source_state="running",
        next_step="install the package qemu-guest-agent in the guest (docs/libvirt.md)",
    )


def cannot_adopt(driver: str, name: str) -> Unsupported:
    return Unsupported(
        f"{driver} runs no machines but those that liveclone has started",
        code="cannot-adopt",
        tried="adopting a machine",
        on=name,
        next_step="--driver libvirt adopts its domains",
    )
