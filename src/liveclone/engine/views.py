"""What `list` and `show` say, as values: one set for people, for --json and (later) the HTTP API.

A machine's state is observed at the moment of asking, never stored. Where another command works on the machine, it
is not disturbed: then the state is what its process shows, and `busy` says what is going on.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from pathlib import Path

from ..errors import HypervisorError, LivecloneError, NotFound
from ..host import locks, process
from ..model.base import Value
from ..model.identity import Evidence
from ..model.machine import Machine, MachineState
from ..model.network import Port
from ..model.scan import Action
from ..model.scrub import Scrub
from ..model.snapshot import Snapshot, SnapshotState
from . import adopt, remove, scrub
from .context import Context

# A hypervisor answers within milliseconds. One that does not must not hold up a list of all the others.
STATE_DEADLINE_S = 2.0
_SIDE_BY_SIDE = 8


class MachineSummary(Value, frozen=True, kw_only=True):
    """A line of `list`."""

    name: str
    id: str
    state: MachineState
    busy: str = (
        ""  # what another command does with it just now, or what an interrupted one left to be repaired
    )
    needs_repair: bool = False
    image: str
    domain: str = ""  # of one that was adopted: libvirt's UUID
    clone_of: str = ""  # the snapshot's name; its id when it has been removed
    address: str = ""
    network: str
    ports: tuple[Port, ...] = ()
    ram_bytes: int
    vcpus: int
    quarantined: bool = False
    created_at: datetime.datetime
    labels: dict[str, str] = {}


class MachineDetail(Value, frozen=True, kw_only=True):
    """What `show` says of a machine. `evidence`: how its identity was verified, if it is a clone or a source."""

    kind: str = "machine"
    summary: MachineSummary
    machine: Machine
    evidence: Evidence | None = None
    verified: bool | None = None  # None: there is nothing to verify
    started: str = ""  # of a clone: "constant", on the memory image itself, or "full (why)"
    console_log: str
    hypervisor_log: str


class SnapshotSummary(Value, frozen=True, kw_only=True):
    """A line of `snapshot list`."""

    name: str
    id: str
    state: SnapshotState
    busy: str = ""  # "sealing"
    source: str  # the machine's name when it was taken
    image: str
    ram_bytes: int
    disk_used_bytes: int  # what it takes on the durable store
    hot_used_bytes: int  # ... and on tmpfs
    pause_ms: float
    clones: int  # that exist now
    warnings: tuple[str, ...] = ()  # what went wrong with the source's applications when it was taken
    unsafe: int = 0  # findings of its scan that the policy warns of
    scrub: Scrub | None = None  # of one that was scrubbed
    created_at: datetime.datetime


class SnapshotDetail(Value, frozen=True, kw_only=True):
    """What `show` says of a snapshot. `members`: everybody whose identity was compared within its family."""

    kind: str = "snapshot"
    summary: SnapshotSummary
    snapshot: Snapshot
    clones: tuple[str, ...] = ()  # names of those that exist
    members: tuple[Evidence, ...] = ()


async def list_machines(ctx: Context) -> list[MachineSummary]:
    """Return all machines, oldest first."""
    snapshots = _snapshot_names(ctx)
    gate = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def one(machine: Machine) -> MachineSummary:
        async with gate:
            return await _summarize(ctx, machine, snapshots)

    return list(await asyncio.gather(*(one(machine) for machine in ctx.machines.list())))


def list_snapshots(ctx: Context) -> list[SnapshotSummary]:
    """Return all snapshots, oldest first."""
    clones: dict[str, int] = {}
    for machine in ctx.machines.list():
        clones[machine.clone_of] = clones.get(machine.clone_of, 0) + 1
    return [summarize_snapshot(ctx, one, clones.get(one.id, 0)) for one in ctx.snapshots.list()]


async def show(ctx: Context, text: str) -> MachineDetail | SnapshotDetail:
    """Return all that is known of the machine or snapshot that `text` names; a machine comes first.

    Raises:
        NotFound: there is neither. Conflict: the beginning of an id fits several.
    """
    try:
        return await show_machine(ctx, text)
    except NotFound as missing:
        if missing.code != "no-machine":
            raise
        try:
            return show_snapshot(ctx, text)
        except NotFound as error:
            hints = [e.next_step for e in (missing, error) if e.next_step.startswith("did you mean")]
            raise NotFound(
                f"there is no machine and no snapshot {missing.on!r}",
                code="not-found",
                tried="finding a machine or a snapshot",
                on=missing.on,
                next_step=" ".join(hints) or "liveclone list, liveclone snapshot list",
            ) from error


async def show_machine(ctx: Context, text: str) -> MachineDetail:
    """Return all that is known of a machine, its evidence included."""
    machine = ctx.machines.find(text)
    evidence = _find_evidence(ctx, machine)
    folder = ctx.layout.machine(machine.id)
    return MachineDetail(
        summary=await _summarize(ctx, machine, _snapshot_names(ctx)),
        machine=machine,
        evidence=evidence,
        verified=evidence.verified if evidence is not None and machine.clone_of else None,
        started=_how_started(ctx, machine) if machine.clone_of else "",
        console_log=str(folder / "console.log"),
        hypervisor_log=str(folder / "qemu.log"),
    )


def _how_started(ctx: Context, machine: Machine) -> str:
    why = ctx.driver_for(machine.driver).why_full(ctx.layout.machine(machine.id))
    return f"full ({why})" if why else "constant"


async def summarize(ctx: Context, machine: Machine) -> MachineSummary:
    """Return the line of one machine."""
    return await _summarize(ctx, machine, _snapshot_names(ctx))


def show_snapshot(ctx: Context, text: str) -> SnapshotDetail:
    """Return all that is known of a snapshot."""
    snapshot = ctx.snapshots.find(text)
    clones = remove.find_machines_of(ctx, snapshot.id)
    return SnapshotDetail(
        summary=summarize_snapshot(ctx, snapshot, len(clones)),
        snapshot=snapshot,
        clones=tuple(clone.name for clone in clones),
        members=tuple(sorted(ctx.evidence(snapshot.id).members().values(), key=lambda member: member.at)),
    )


def summarize_snapshot(ctx: Context, snapshot: Snapshot, clones: int) -> SnapshotSummary:
    """Return the line of one snapshot."""
    sealing = locks.is_held(ctx.layout.lock(f"seal-{snapshot.id}"))
    hot = Path(snapshot.hot.path) if snapshot.hot is not None else None
    return SnapshotSummary(
        name=snapshot.name,
        id=snapshot.id,
        state=snapshot.state,
        busy="sealing" if sealing and snapshot.state is not SnapshotState.SEALED else "",
        source=snapshot.source_name,
        image=snapshot.image,
        ram_bytes=snapshot.hardware.ram_bytes,
        disk_used_bytes=sum(map(_used, ctx.layout.snapshot(snapshot.id).glob("*"))),
        hot_used_bytes=_used(hot) if hot is not None else 0,
        pause_ms=round(snapshot.capture.pause_ns / 1e6, 3),
        clones=clones,
        warnings=snapshot.warnings,
        unsafe=len(snapshot.scan.of(Action.WARN)) if snapshot.scan is not None else 0,
        scrub=snapshot.scrub,
        created_at=snapshot.created_at,
    )


async def _summarize(ctx: Context, machine: Machine, snapshots: dict[str, str]) -> MachineSummary:
    with contextlib.suppress(HypervisorError):  # nobody to ask: its process is all that is known
        machine = await adopt.look_again(ctx, machine)
    state, busy, needs_repair = await _observe(ctx, machine)
    return MachineSummary(
        name=machine.name,
        id=machine.id,
        state=state,
        busy=busy,
        needs_repair=needs_repair,
        image=machine.image,
        domain=machine.domain,
        clone_of=snapshots.get(machine.clone_of, machine.clone_of),
        address=machine.nics[0].ip if machine.nics and not machine.quarantined else "",
        network=machine.network.value,
        ports=machine.ports,
        ram_bytes=machine.hardware.ram_bytes,
        vcpus=machine.hardware.vcpus,
        quarantined=machine.quarantined,
        created_at=machine.created_at,
        labels=machine.labels,
    )


async def _observe(ctx: Context, machine: Machine) -> tuple[MachineState, str, bool]:
    """Return the state, what another command does with the machine, and whether one left it to be repaired."""
    held = locks.is_held(ctx.layout.lock(f"machine-{machine.id}"))
    entry = ctx.journal(machine.id).read()
    if entry is not None and held:
        starting = entry.operation in ("run", "start", "clone")
        state = MachineState.STARTING if starting else MachineState.RUNNING
        alive = starting or process.is_alive(machine.process)
        return state if alive else MachineState.STOPPED, entry.operation, False
    left = f"interrupted {entry.operation}" if entry is not None else ""
    if not process.is_alive(machine.process):
        return MachineState.STOPPED, left, bool(left)
    if not left and not held and scrub.is_due(ctx, machine):
        left = "secrets that were taken out of it are not back"
    state = MachineState.RUNNING if held else await _ask(ctx, machine)
    return state, left, bool(left)


async def _ask(ctx: Context, machine: Machine) -> MachineState:
    """Ask the hypervisor; one that is busy or silent has a process, and that is all that is known."""
    try:
        async with asyncio.timeout(STATE_DEADLINE_S):
            handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
            try:
                return await handle.state()
            finally:
                await handle.close()
    except NotFound:
        return MachineState.STOPPED
    except (LivecloneError, TimeoutError):
        return MachineState.RUNNING


def _find_evidence(ctx: Context, machine: Machine) -> Evidence | None:
    """Return a clone's evidence, or a source's from its latest snapshot; None if its snapshots are gone."""
    if machine.clone_of:
        return ctx.evidence(machine.clone_of).load(machine.id)
    for snapshot in reversed(ctx.snapshots.list()):
        if snapshot.source == machine.id and (found := ctx.evidence(snapshot.id).load(machine.id)):
            return found  # one that was imported has none
    return None


def _snapshot_names(ctx: Context) -> dict[str, str]:
    return {snapshot.id: snapshot.name for snapshot in ctx.snapshots.list()}


def _used(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
