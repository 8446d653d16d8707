"""Start live clones from a snapshot: each a new machine, verified before it gets a network.

    step       what                                                    its undo
    make       name, id, MAC, address, manifest, disk overlay          remove them
    restore    QEMU with the memory image mapped private, state loaded end the process
               (or one that waited in the pool so: engine/pool.py)
    identify   the guest runs, without any NIC; agent resets all items
    verify     the host compares with the snapshot and every sibling   (quarantine: it never gets a NIC)
    connect    NIC with its new MAC, address, ports
    ready      the manifest says so; the journal ends

Several clones come up side by side; one that fails is removed (or kept, without a NIC, with `keep_failed`) and its
siblings are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from .. import trace
from ..drivers.base import Handle
from ..errors import LivecloneError, TimedOut
from ..host import locks
from ..ids import new_id
from ..model.base import now
from ..model.identity import Evidence
from ..model.machine import Machine, MachineState, Memory
from ..model.snapshot import Snapshot
from . import agent as agents
from . import (
    capacity,
    death,
    disposal,
    identify,
    parts,
    pool,
    recheck,
    refill,
    remove,
    restore,
    siblings,
    wiring,
)
from .clone_plan import Request, Result, choose_names, choose_parameters
from .context import Context

__all__ = ["Request", "Result", "start"]


async def start(ctx: Context, request: Request) -> list[Result]:
    """Start clones and return one result each, in order; a failed one carries its error and leaves nothing.

    Raises:
        Refused: a bad count, name or port, or not enough memory for all of them. Nothing was started.
        NotFound: there is no such snapshot. Corrupt: its parts do not match its manifest.
        Unsupported: it was taken under another QEMU. Nothing was started.
    """
    began = time.monotonic()
    found = ctx.snapshots.find(request.snapshot)
    async with ctx.hold_snapshot(found.id, f"cloning {found.name}", shared=True) as snapshot:
        wiring.check_kind(ctx.driver_for(snapshot.driver), request.network or snapshot.network)
        names, parameters = choose_names(ctx, snapshot, request), choose_parameters(request)
        memory = await asyncio.to_thread(parts.check, ctx, snapshot)
        trace.at("clone.checked")
        if not request.overcommit:
            await pool.with_room(
                ctx, lambda: capacity.check_clones(ctx, snapshot, request.count), last=snapshot.id
            )
        key = ctx.evidence(snapshot.id).key()
        gate = asyncio.Semaphore(capacity.side_by_side())
        ctx.progress(f"starting {request.count} clone{'s' * (request.count > 1)}", 0.0)
        done = 0

        async def one(place: int, result: Result) -> None:
            nonlocal done
            async with gate:
                try:
                    with death.explained(state="not touched", next_step=f"liveclone clone {snapshot.name}"):
                        await _Clone(ctx, snapshot, memory, key, request, result, place, began).carry_out()
                except LivecloneError as error:
                    error.source_state = error.source_state or "not touched"
                    result.error = error
            result.ready_s = time.monotonic() - began
            done += 1
            if result.machine is not None:
                ready.leave(result.machine)
            ctx.progress(f"{result.name} {'failed' if result.error else 'is ready'}", done / request.count)

        results = [Result(name, given) for name, given in zip(names, parameters, strict=True)]
        try:
            with siblings.coming_up(request.count) as ready:
                async with asyncio.TaskGroup() as group:
                    for place, result in enumerate(results):
                        group.create_task(one(place, result))
        except asyncio.CancelledError:
            # Those that are ready are undone too: nobody is told of them.
            for result in results:
                if result.machine is not None:
                    await remove.remove_machine(ctx, result.machine.id, force=True)
            raise
        recheck.start(ctx, snapshot)
        refill.start(ctx, snapshot)
    return results


class _Clone:
    """One clone on its way."""

    def __init__(
        self,
        ctx: Context,
        snapshot: Snapshot,
        memory: Memory,
        key: bytes,
        request: Request,
        result: Result,
        place: int,
        began: float,
    ) -> None:
        self.ctx, self.snapshot, self.memory, self.key = ctx, snapshot, memory, key
        self.request, self.result, self.place = request, result, place
        self.marked = began

    def mark(self, step: str) -> None:
        self.result.steps_ms[step] = round((time.monotonic() - self.marked) * 1000, 3)
        self.marked = time.monotonic()

    async def carry_out(self) -> None:
        ctx = self.ctx
        self.mark("wait")
        async with AsyncExitStack() as undo:
            waited = await pool.take(ctx, self.snapshot, self.memory, self.result.name, undo)
            machine_id = new_id() if waited is None else waited[0].id
            if waited is None:
                await undo.enter_async_context(_alone(ctx, machine_id, self.result.name))
            keep = AsyncExitStack()
            keep.push_async_callback(_remove, ctx, self.snapshot.id, machine_id)
            await undo.enter_async_context(keep)
            if waited is None:
                disposal.begin_machine(ctx, machine_id, "clone", snapshot=self.snapshot.id)
                machine, handle = await self._start(machine_id, undo)
            else:
                ctx.journal(machine_id).begin("clone", snapshot=self.snapshot.id)
                trace.at("pool.taken")
                machine, handle = self._make(waited[0]), waited[1]
                self.result.pooled = True
            self.mark("restore")
            trace.at("clone.restored")
            try:
                evidence, machine = await self._identify(handle, machine)
            except LivecloneError as error:
                if isinstance(error, TimedOut):
                    await _explain_silence(ctx, handle, error)
                if self.request.keep_failed:
                    keep.pop_all()
                    ctx.machines.save(machine.replace(quarantined=True))
                    ctx.journal(machine_id).end()
                raise
            machine = wiring.publish(ctx, machine)
            ctx.machines.save(machine, durable=False)
            ctx.journal(machine_id).end()
            self.result.machine, self.result.evidence = machine, evidence
            keep.pop_all()
        self.mark("ready")
        trace.at("clone.ready")

    async def _start(self, machine_id: str, undo: AsyncExitStack) -> tuple[Machine, Handle]:
        """Return a new machine, and a handle that `undo` closes."""
        ctx, snapshot = self.ctx, self.snapshot
        machine = self._make(restore.plan_machine(ctx, snapshot, machine_id, self.result.name))
        restore.make_disks(ctx, snapshot, machine)
        self.mark("make")
        trace.at("clone.made")
        handle = await restore.start(ctx, snapshot, machine, self.memory)
        undo.push_async_callback(handle.close)
        machine = machine.replace(process=handle.process, memory=self.memory)
        ctx.machines.save(machine, durable=False)
        return machine, handle

    def _make(self, plain: Machine) -> Machine:
        """Write the manifest of the clone that `plain` becomes, with its name and network; it waits in no pool any more."""
        ctx, snapshot = self.ctx, self.snapshot
        network = self.request.network or snapshot.network
        machine: Machine = plain.replace(
            name=self.result.name,
            created_at=now(),
            network=network,
            nics=wiring.plan_nics(
                ctx, plain.id, network, self.result.parameters.address, snapshot.nics or (wiring.NIC_ID,)
            ),
            ports=wiring.choose_ports(network, self.request.ports),
        )
        ctx.machines.create(machine)
        pool.forget(ctx, snapshot.id, machine.id)
        return machine

    async def _identify(self, handle: Handle, machine: Machine) -> tuple[Evidence, Machine]:
        """Let the guest run without a NIC, renew and judge its identity, and only then connect it."""
        ctx = self.ctx
        async with agents.connect(handle, machine.name) as agent:
            # Connected before the guest runs: to its agent the connection of the source simply goes on.
            await handle.resume()
            self.mark("resume")
            trace.at("clone.resumed")
            # What signing needs is loaded while we wait for the guest.
            loading = asyncio.ensure_future(asyncio.to_thread(ctx.host_key.load))
            rest_s = identify.rest_s(self.place, self.request.count, machine.hardware.acceleration)
            reported = await identify.become(
                agent, machine, self.key, self.snapshot.id, self.result.parameters, rest_s
            )
            await loading
            self.mark("identify")
            trace.at("clone.identified")
            existing = {other.id for other in ctx.machines.list()}
            book = ctx.evidence(self.snapshot.id)
            evidence = book.judge_and_record(reported, self.snapshot.items, existing)
            if not evidence.verified:
                raise identify.not_verified(machine, evidence)
            self.mark("verify")
            trace.at("clone.verified")
            cards, machine = await wiring.connect(ctx, handle, machine, agent)
            evidence = identify.with_cards(machine, evidence, cards, self.snapshot.addresses)
            book.record(evidence)
            if not evidence.verified:
                await _cut_off(handle, machine)
                raise identify.not_verified(machine, evidence)
            self.mark("connect")
            trace.at("clone.connected")
        return evidence, machine


def _alone(ctx: Context, machine_id: str, name: str) -> AbstractAsyncContextManager[None]:
    return locks.hold_async(ctx.layout.lock(f"machine-{machine_id}"), f"starting {name}", 5.0)


async def _remove(ctx: Context, snapshot_id: str, machine_id: str) -> None:
    """Undo a clone, whatever there is of it; shielded, so that an impatient user leaves nothing behind."""

    async def work() -> None:
        await disposal.dispose_id(ctx, machine_id)
        pool.forget(ctx, snapshot_id, machine_id)

    await asyncio.shield(work())


async def _explain_silence(ctx: Context, handle: Handle, error: TimedOut) -> None:
    """Say of a guest that did not answer in time why, when its processors stand still."""
    with contextlib.suppress(LivecloneError):
        if await handle.state() is MachineState.PAUSED:
            error.seen += "; the machine stands still, as it does when it writes to a disk that is full"
            error.next_step = f"make room: df -h {ctx.layout.home}"


async def _cut_off(handle: Handle, machine: Machine) -> None:
    """Take a machine's NICs from it, or end it if it does not let go of them."""
    try:
        await wiring.disconnect(handle, machine)
    except LivecloneError:
        await handle.kill()
