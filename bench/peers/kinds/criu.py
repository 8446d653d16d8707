"""CRIU: the processes of a warm container saved into files, and restored as often as is asked for, by the host's own kernel.

    container (crun), warm, memory filled ── criu dump ──> images, on tmpfs
    a copy:  a network namespace ── criu restore, with the same root ── the copy

Native, as the container. Each copy reads all the memory, and has it to itself.

NOT HANDLED: no host has been seen on which it ran to its end: CRIU 3.17 (Debian 12) does not know the vDSO of kernel 6.18.
Tripwire: `criu check`, asked first; whatever fails later is told with CRIU's own error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from liveclone.errors import HypervisorError, LivecloneError
from liveclone.host import command, links, netns, process
from liveclone.units import MIB

from ...lab import Lab
from ...private import private_bytes
from .. import app, container, qemu, room
from ..base import Copy, Expected, Peer, Reached, State

PROGRAM = "criu"
DEADLINE_S = 300.0
FILLER = (Path(__file__).parent.parent / "guest" / "touch.py").read_text()
LEFT_MIB = 128  # of the size, as guest_load.py leaves
OUTSIDE = "outside"  # what the network namespace is called in the images


class Criu(Peer):
    name = "criu"
    words = "the container's processes, saved and restored (CRIU)"
    order = 70

    async def find_obstacle(self, lab: Lab) -> str:
        for program in (container.PROGRAM, PROGRAM):
            if not shutil.which(program):
                return f"{program} is not installed"
        try:
            await command.run([PROGRAM, "check"], deadline_s=DEADLINE_S)
        except LivecloneError as error:
            return f"criu check: {error.seen.partition(chr(10))[0]}"  # the others follow from the first
        return ""

    async def find_version(self, lab: Lab) -> str:
        told = await command.run([PROGRAM, "--version"], deadline_s=DEADLINE_S)
        return f"criu {told.split()[1]}"

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        links.ensure_network(lab.ctx.network_spec())
        room.need(lab, ram_mib * MIB, ram_mib * MIB, "processes and what is saved of them")
        with qemu.open_folders(lab, self.name) as (folder, hot):
            root = await container.make_root(lab, folder)
            containers = container.Containers(lab, root, folder)
            try:
                words = ["/usr/bin/python3", "-c", FILLER, str(max(ram_mib - LEFT_MIB, 1))]
                source = await containers.start(words)
                index = await asyncio.to_thread(app.right_index)
                token = await app.first_answer(source, Expected(index), app.WARM_DEADLINE_S)
                state = Images(lab, root, folder, hot, source)
                state.expected = Expected(index, token)
                state.touched_mib = sum(map(private_bytes, _tree(source.pids[0]))) / MIB
                await state.save(containers.networks[0].name)
                yield state
            finally:
                await asyncio.shield(containers.end())


class Images(State):
    """What CRIU has saved."""

    def __init__(self, lab: Lab, root: Path, folder: Path, hot: Path, source: Copy) -> None:
        self.lab, self.root, self.folder, self.images, self.source = lab, root, folder, hot / "images", source
        self.networks = container.Containers(lab, root, folder)
        self.started: list[tuple[Path, int]] = []

    async def save(self, namespace: str) -> None:
        """Save the processes, which go on."""
        self.images.mkdir()
        inode = netns.path(namespace).stat().st_ino
        log = self.images / "dump.log"
        began = time.monotonic()
        told = await _criu(
            *("dump", "--tree", str(self.source.pids[0]), "--images-dir", str(self.images)),
            *("--leave-running", "--external", f"net[{inode}]:{OUTSIDE}", "--display-stats"),
            *("--root", str(self.root)),
            log=log,
        )
        self.make_s = time.monotonic() - began
        if frozen := re.search(r"Frozen time: (\d+)", told):
            self.pause_ms = int(frozen[1]) / 1e3

    async def start(self, count: int, reached: Reached) -> None:
        size = sum(file.stat().st_size for file in self.images.iterdir())
        room.need(self.lab, 0, count * size, f"{count} times the processes' memory")

        async def restore() -> None:
            network = await self.networks.open_network()
            place = self.folder / f"root-{network.id}"
            place.mkdir()
            self.started.append((place, 0))
            await command.run(["mount", "--bind", str(self.root), str(place)], deadline_s=DEADLINE_S)
            await command.run(["mount", "--make-private", str(place)], deadline_s=DEADLINE_S)
            pid = await self._restore(network, place)
            self.started[self.started.index((place, 0))] = place, pid
            reached(Copy(network.id, self.lab.ctx.layout.namespace, network.address, tuple(_tree(pid))))

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(restore())

    async def _restore(self, network: container.Network, place: Path) -> int:
        pid_file, log = place.with_suffix(".pid"), place.with_suffix(".log")
        namespace = netns.path(network.name)
        # A shell opens the namespace under a number that CRIU can be told.
        criu = [
            *(PROGRAM, "restore", "--images-dir", str(self.images), "--root", str(place)),
            *("--restore-detached", "--pidfile", str(pid_file), "--manage-cgroups=ignore"),
            *("--inherit-fd", f"fd[9]:{OUTSIDE}", "-v1", "--log-file", str(log)),
        ]
        shell = ["sh", "-c", 'exec 9<"$0" && exec "$@"', str(namespace), *criu]
        run = process.start(shell, cwd=self.folder, log=log.with_suffix(".out"))
        await process.wait(run, DEADLINE_S)
        try:
            return int(pid_file.read_text())
        except (OSError, ValueError) as error:
            raise HypervisorError("criu did not restore", seen=_last_error(log)) from error

    async def end(self) -> None:
        while self.started:
            place, pid = self.started.pop()
            if pid:
                await process.end(
                    process.ref(pid)
                )  # the first of its process namespace: all others go with it
            if os.path.ismount(place):
                await command.run(["umount", "--lazy", str(place)], deadline_s=DEADLINE_S)
            place.rmdir()
        await self.networks.end()


async def _criu(*words: str, log: Path) -> str:
    """Run criu and return what it told.

    Raises:
        HypervisorError: it failed; `seen` has its errors.
    """
    options = ["--manage-cgroups=ignore", "-v1", "--log-file", str(log)]
    try:
        return await command.run([PROGRAM, *words, *options], deadline_s=DEADLINE_S, failure=HypervisorError)
    except HypervisorError as error:
        error.seen = _last_error(log) or error.seen
        raise


def _last_error(log: Path) -> str:
    """Return the errors of a log of criu's."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    errors = [line.partition("Error")[2].strip() for line in lines if "Error" in line]
    return " | ".join(errors[:2]) or " | ".join(lines[-2:])


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(one for child in text.split() for one in _tree(int(child)))]


PEER = Criu
