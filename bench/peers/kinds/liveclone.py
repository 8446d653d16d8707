"""Live clones of a warm machine: its memory shared, an identity of its own for each, verified before it has a network."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

from liveclone import __version__
from liveclone.engine import clone, remove, run, snapshot
from liveclone.host import process
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from liveclone.units import MIB

from ... import lab as laboratory
from ...lab import Lab
from .. import app
from ..base import Copy, Expected, Peer, Reached, State

SNAPSHOT = "warm"
SEALED_DEADLINE_S = 600.0
IS_READY = " is ready"


class Liveclone(Peer):
    name = "liveclone"
    words = "live clones of a running machine"
    order = 10

    async def find_version(self, lab: Lab) -> str:
        return f"liveclone {__version__}, {await find_qemu(lab)}"

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        async with open_warm(lab, ram_mib) as (source, expected):
            began = time.monotonic()
            taken = await snapshot.take(lab.ctx, snapshot.Request(machine=source.id, name=SNAPSHOT))
            state = self.make_state(lab, taken)
            state.make_s, state.pause_ms = time.monotonic() - began, taken.capture.pause_ns / 1e6
            state.expected, state.touched_mib = expected, laboratory.image_mib(taken)
            await _wait_sealed(lab)
            await state.finish()
            yield state

    def make_state(self, lab: Lab, taken: Snapshot) -> LiveSnapshot:
        """Return what clones are started from."""
        return LiveSnapshot(lab, taken)


class LiveSnapshot(State):
    """A live snapshot; the engine tells of each clone as it is ready."""

    def __init__(self, lab: Lab, taken: Snapshot) -> None:
        self.lab, self.snapshot_id = lab, taken.id

    async def finish(self) -> None:
        """Do what else belongs to making it."""

    async def start(self, count: int, reached: Reached) -> None:
        def progress(text: str, fraction: float | None = None) -> None:
            if text.endswith(IS_READY):
                reached(copy_of(self.lab, self.lab.ctx.machines.find(text.removesuffix(IS_READY))))

        ctx = dataclasses.replace(self.lab.ctx, progress=progress)
        for result in await clone.start(ctx, clone.Request(snapshot=SNAPSHOT, count=count)):
            if result.error is not None:
                raise result.error

    async def end(self) -> None:
        for machine in self.lab.ctx.machines.list():
            if machine.clone_of == self.snapshot_id:
                await remove.remove_machine(self.lab.ctx, machine.id, force=True)


@contextlib.asynccontextmanager
async def open_warm(lab: Lab, ram_mib: int) -> AsyncIterator[tuple[Machine, Expected]]:
    """Boot a machine until its application has answered, and fill its memory; all of the lab's is removed at the end."""
    ctx = lab.ctx
    try:
        request = run.Request(image=app.IMAGE.name, name="source", ram_bytes=ram_mib * MIB)
        source = await run.run(ctx, request)
        index = await asyncio.to_thread(app.right_index)
        token = await app.first_answer(copy_of(lab, source), Expected(index), app.WARM_DEADLINE_S)
        await laboratory.load(lab, source, "fill")
        yield source, Expected(index, token)
    finally:
        await asyncio.shield(laboratory.remove_all(ctx))


def copy_of(lab: Lab, machine: Machine) -> Copy:
    """Return a machine as a copy that can be asked."""
    assert machine.process is not None
    return Copy(machine.name, lab.ctx.layout.namespace, machine.nics[0].ip, (machine.process.pid,))


async def find_qemu(lab: Lab) -> str:
    """Return which QEMU is run, and how it runs a guest."""
    found = await lab.ctx.driver.abilities()
    return f"qemu {found.version} ({found.acceleration.value})"


async def _wait_sealed(lab: Lab) -> None:
    """Wait for the durable copy, which is made in the background."""
    for pid, line in process.find(str(lab.ctx.layout.home)):
        if "liveclone.engine.seal" in line:
            await process.wait(process.ref(pid), SEALED_DEADLINE_S)


PEER = Liveclone
