"""A cold boot of the same guest, as `liveclone run` does it: kernel, systemd, an identity of its own, the application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from liveclone.engine import run
from liveclone.units import MIB

from ... import lab as laboratory
from ...lab import Lab
from .. import app
from ..base import Expected, Peer, Reached, State
from .liveclone import copy_of, find_qemu


class ColdBoot(Peer):
    name = "cold-boot"
    words = "the same guest, booted (liveclone run)"
    order = 10

    async def find_version(self, lab: Lab) -> str:
        return await find_qemu(lab)

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        state = Image(lab, ram_mib)
        state.expected = Expected(await asyncio.to_thread(app.right_index))
        yield state


class Image(State):
    """The image that the guest boots from."""

    def __init__(self, lab: Lab, ram_mib: int) -> None:
        self.lab, self.ram_mib = lab, ram_mib

    async def start(self, count: int, reached: Reached) -> None:
        async def boot(number: int) -> None:
            request = run.Request(image=app.IMAGE.name, name=f"cold-{number}", ram_bytes=self.ram_mib * MIB)
            machine = await run.run(self.lab.ctx, request)
            self.touched_mib = laboratory.touched_mib(machine)
            reached(copy_of(self.lab, machine))

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(boot(number))

    async def end(self) -> None:
        await laboratory.remove_all(self.lab.ctx)


PEER = ColdBoot
