"""What a snapshot is going to be: its way of capture, its name, where its parts go. Nothing is touched yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..drivers.base import DiskCapture, Handle
from ..errors import Refused
from ..host import files
from ..identity import policy as policies
from ..ids import check_name, new_id
from ..model.disk import Disk
from ..model.identity import ItemReport
from ..model.machine import Machine, MachineState, MemorySource
from ..model.scan import Scan
from ..model.scrub import Scrub
from ..model.snapshot import CaptureMethod
from ..store.journal import Journal
from . import capacity, parts
from .context import Context
from .scrub import Taken

MARK = ".liveclone-"  # in the name of a layer beside somebody else's disk
_BY_MEMORY = {
    MemorySource.SHARED_HOT: CaptureMethod.HANDOVER,
    MemorySource.PRIVATE_HOT: CaptureMethod.BACKGROUND,
    MemorySource.PRIVATE_DISK: CaptureMethod.STREAM,
    MemorySource.ANONYMOUS: CaptureMethod.STREAM,
}


@dataclass(frozen=True)
class Scrubbing:
    """That secrets are to be taken out: the well-known ones, those at `paths`; `units` stand still meanwhile."""

    paths: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is asked for. `name` empty: the machine's name and a number. `method` None: what its memory allows best."""

    machine: str
    name: str = ""
    method: CaptureMethod | None = None
    wait_sealed: bool = False
    policy: str = policies.DEFAULT  # what decides which findings of the scan refuse the snapshot
    scrub: Scrubbing | None = None
    keep_overlay: bool = False  # a machine that was adopted goes on on the layers that it got for the capture


@dataclass
class Work:
    """One snapshot being taken."""

    ctx: Context
    journal: Journal
    machine: Machine
    id: str
    name: str
    method: CaptureMethod
    began: float
    folder: Path
    disks: tuple[DiskCapture, ...]
    keep_overlay: bool
    memory: Path
    policy: policies.Policy
    scan: Scan | None = None
    key: bytes = b""
    items: tuple[ItemReport, ...] = ()
    warnings: tuple[str, ...] = ()
    is_final: bool = False  # the source goes on behind the capture: there is no way back
    died: bool = False  # the source's process has ended
    steps_ms: dict[str, float] = field(default_factory=dict)
    marked: float = 0.0
    layered: bool = False  # the driver may have put the next layer on, and deletes it when it is off again
    keeps_folder: bool = False  # what the guest writes stands on the frozen layer in it
    scrub: Scrubbing | None = None
    taken: Taken = field(default_factory=Taken)  # out of the guest
    proof: Scrub | None = None
    unsettled: list[str] = field(default_factory=list)  # what the undo left; the journal stays, for `repair`

    def end(self) -> None:
        """End the journal, unless something is left to be done."""
        if not self.unsettled:
            self.journal.end()

    def drop(self) -> None:
        """Remove the snapshot's folder, unless it is needed."""
        if not self.keeps_folder:
            files.remove_tree(self.folder)

    def mark(self, step: str) -> None:
        self.steps_ms[step] = round((time.monotonic() - self.marked) * 1000, 3)
        self.marked = time.monotonic()


def plan(ctx: Context, machine: Machine, request: Request) -> Work:
    """Refuse what cannot be done, before anything is touched; `machine` is what its lock protects."""
    assert machine.memory is not None
    policy = policies.load(request.policy)
    best = _BY_MEMORY[machine.memory.source]
    if best not in ctx.driver_for(machine.driver).methods:
        best = CaptureMethod.STREAM
    method = request.method or best
    if method is CaptureMethod.HANDOVER and best is not CaptureMethod.HANDOVER:
        raise Refused(
            f"{machine.name} cannot be captured by handover: its RAM is a snapshot's image already",
            code="no-handover",
            tried="choosing how to capture",
            on=machine.name,
            seen=machine.memory.source.value,
            source_state="running, not touched",
            next_step=f"leave the method out ({best.value}), or restart the machine",
        )
    if method is CaptureMethod.BACKGROUND and machine.memory.source is MemorySource.PRIVATE_DISK:
        raise Refused(
            f"{machine.name} cannot be captured in the background: its RAM maps a file on a disk",
            code="no-background",
            tried="choosing how to capture",
            on=machine.name,
            seen=machine.memory.source.value,
            source_state="running, not touched",
            next_step="leave the method out (stream)",
        )
    if method is not CaptureMethod.HANDOVER:
        capacity.check_capture(ctx, machine)
    if machine.adopted:
        capacity.check_copies(ctx, machine)
    elif request.keep_overlay:
        raise Refused(
            f"{machine.name} was not adopted: it goes on on new disk layers anyway",
            code="not-adopted",
            tried="choosing what becomes of its disks",
            on=machine.name,
            source_state="running, not touched",
            next_step="leave --keep-overlay out",
        )
    name = request.name or _free_name(ctx, machine)
    check_name(name, "snapshot name")
    taken = [other for other in ctx.snapshots.list() if other.name == name]
    if taken:
        raise Refused(
            f"there is a snapshot named {name} already",
            code="name-taken",
            tried="naming a snapshot",
            on=name,
            seen=f"id {taken[0].id}",
            source_state="running, not touched",
            next_step="choose another name, or remove that one",
        )
    snapshot_id = new_id()
    began = time.monotonic()
    return Work(
        ctx=ctx,
        journal=ctx.journal(machine.id),
        machine=machine,
        id=snapshot_id,
        name=name,
        method=method,
        policy=policy,
        began=began,
        marked=began,
        folder=ctx.layout.snapshot(snapshot_id),
        disks=tuple(_plan_disks(ctx, machine, snapshot_id)),
        keep_overlay=request.keep_overlay,
        memory=ctx.layout.hot_image(snapshot_id),
        scrub=request.scrub,
    )


def _plan_disks(ctx: Context, machine: Machine, snapshot_id: str) -> Iterator[DiskCapture]:
    """Say what becomes of each disk: ours get a layer in the machine's folder, others one beside them for a while."""
    folder, own = ctx.layout.snapshot(snapshot_id), ctx.layout.machine(machine.id)
    only = Disk(target="", path=machine.disk, format="qcow2", size_bytes=machine.disk_bytes)
    for disk in machine.disks or (only,):
        present = Path(disk.path)
        name = f"{parts.DISKS}-{disk.target}" if disk.target else parts.DISKS
        if machine.adopted:
            layer = present.with_name(f"{present.stem.partition(MARK)[0]}{MARK}{snapshot_id}.qcow2")
        else:
            layer = own / f"{name}-{snapshot_id}.qcow2"
        yield DiskCapture(
            target=disk.target,
            present=present,
            format=disk.format,
            size_bytes=disk.size_bytes,
            frozen=folder / f"{name}.{disk.format}",
            layer=layer,
        )


async def check_state(handle: Handle, machine: Machine) -> None:
    """Raise Refused unless the machine runs and may be a source; Conflict if somebody is at something with it."""
    state = await handle.state()
    if state is not MachineState.RUNNING:
        raise Refused(
            f"{machine.name} is {state.value}, not running",
            code="not-running",
            tried="a live snapshot",
            on=machine.name,
            seen=state.value,
            source_state=state.value,
            next_step=f"liveclone start {machine.name}",
        )
    if machine.quarantined:
        raise Refused(
            f"{machine.name} is in quarantine: its identity was not verified, so it cannot become a source",
            code="quarantined",
            tried="a live snapshot",
            on=machine.name,
            source_state="running, without a network",
            next_step=f"liveclone remove --force {machine.name}",
        )
    await handle.check_free("a live snapshot", f"liveclone snapshot {machine.name}")


def _free_name(ctx: Context, machine: Machine) -> str:
    """Return the first of web-1, web-2, ... that no snapshot has."""
    taken = {snapshot.name for snapshot in ctx.snapshots.list()}
    number = 1
    while f"{machine.name[:50]}-{number}" in taken:
        number += 1
    return f"{machine.name[:50]}-{number}"
