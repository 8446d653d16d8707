"""The best cold boot that one can get of the same guest: systemd starts nothing but the application and its network.

No agent, no udev, no journal, no ssh; the kernel, the image and the devices are those of the cold boot. QEMU runs by itself,
without liveclone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from liveclone.host import links

from ...lab import Lab
from .. import app, qemu
from ..base import Expected, Peer, Reached, State
from .liveclone import find_qemu

WORDS = "systemd.unit=trimmed.target trimmed.address={address}"


class TrimmedBoot(Peer):
    name = "trimmed-boot"
    words = "the same guest, booted with nothing but the application (QEMU alone)"
    order = 20

    async def find_version(self, lab: Lab) -> str:
        return await find_qemu(lab)

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        links.ensure_network(lab.ctx.network_spec())
        with qemu.open_folders(lab, self.name) as (folder, _):
            state = Trimmed(lab, ram_mib, folder)
            state.expected = Expected(await asyncio.to_thread(app.right_index))
            yield state


class Trimmed(State):
    """The image, and how it is booted."""

    def __init__(self, lab: Lab, ram_mib: int, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.herd = qemu.Herd(lab, ram_mib)

    async def start(self, count: int, reached: Reached) -> None:
        async def boot(number: int) -> None:
            drive = qemu.make_overlay(self.lab, self.folder / f"{number}.qcow2")
            one = await self.herd.launch(drive, append=WORDS, bridged=True)
            reached(one.copy)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(boot(number))

    def find_touched_mib(self) -> float:
        return self.herd.running[0].touched_mib()

    async def end(self) -> None:
        await self.herd.end()


PEER = TrimmedBoot
