"""A cold boot of the same guest: kernel, systemd, all its services, the application. QEMU runs by itself, without liveclone.

Its agent is asked for one thing only: to give the network card its address, when it is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from liveclone.host import links

from ...lab import Lab
from .. import app, guest, qemu
from ..base import Expected, Peer, Reached, State
from .liveclone import find_qemu


class ColdBoot(Peer):
    name = "cold-boot"
    words = "the same guest, booted (QEMU alone)"
    order = 90
    grows = False

    async def find_version(self, lab: Lab) -> str:
        return await find_qemu(lab)

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        links.ensure_network(lab.ctx.network_spec())
        with qemu.open_folders(lab, self.name) as (folder, _):
            state = self.make_state(lab, ram_mib, folder)
            state.expected = Expected(await asyncio.to_thread(app.right_index))
            yield state

    def make_state(self, lab: Lab, ram_mib: int, folder: Path) -> Image:
        """Return what is booted."""
        return Image(lab, ram_mib, folder)


class Image(State):
    """The image that guests boot from."""

    def __init__(self, lab: Lab, ram_mib: int, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.herd = qemu.Herd(lab, ram_mib)

    async def start(self, count: int, reached: Reached) -> None:
        async def one(number: int) -> None:
            drive = qemu.make_overlay(self.lab, self.folder / f"{number}.qcow2")
            reached((await self.boot(drive)).copy)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    async def boot(self, drive: Path) -> qemu.Qemu:
        """Boot one, and return it when it can be asked."""
        one = await self.herd.launch(drive, bridged=True)
        gateway = self.lab.ctx.leases.gateway
        await guest.connect(one.folder / "agent", one.copy.name, one.mac, one.cidr, gateway)
        return one

    def find_touched_mib(self) -> float:
        return self.herd.running[0].touched_mib()

    async def end(self) -> None:
        await self.herd.end()


PEER = ColdBoot
