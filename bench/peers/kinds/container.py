"""A container of the same application, started anew: the same files as in the guest, run by the host's own kernel.

So it runs at the host's native speed, while guests are emulated where there is no KVM: that, and no isolation by hardware,
is what is compared here. There is no warm state; each builds its index.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from liveclone.host import command, links

from ...lab import Lab
from .. import app, container, qemu
from ..base import Expected, Peer, Reached, State


class Container(Peer):
    name = "container"
    words = "a container of the same files, native (crun)"
    order = 60
    sized = False

    async def find_obstacle(self, lab: Lab) -> str:
        return "" if shutil.which(container.PROGRAM) else f"{container.PROGRAM} is not installed"

    async def find_version(self, lab: Lab) -> str:
        told = await command.run([container.PROGRAM, "--version"], deadline_s=container.DEADLINE_S)
        return told.splitlines()[0].replace(" version", "")

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        links.ensure_network(lab.ctx.network_spec())
        with qemu.open_folders(lab, self.name) as (folder, _):
            state = Root(lab, await container.make_root(lab, folder), folder)
            state.expected = Expected(await asyncio.to_thread(app.right_index))
            yield state


class Root(State):
    """The files."""

    def __init__(self, lab: Lab, root: Path, folder: Path) -> None:
        self.containers = container.Containers(lab, root, folder)

    async def start(self, count: int, reached: Reached) -> None:
        async def one() -> None:
            reached(await self.containers.start())

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    async def end(self) -> None:
        await self.containers.end()


PEER = Container
