"""QEMU's migration into a file with a place for each page (mapped-ram), written and read by several threads (multifd).

    migrate ── pages, while the guest runs ── pre-switchover (stopped) ── freeze the disk ── devices ── cont
    a copy:  QEMU -incoming ── the file read whole, by as many threads as there are processors ── cont

Copies share the file, each has a layer of its own on the disk. All on tmpfs. Each reads the whole memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from liveclone.drivers.qemu import disk, migration
from liveclone.drivers.qemu.background import UNLIMITED
from liveclone.drivers.qemu.session import Session
from liveclone.host import machine
from liveclone.units import MIB

from ...lab import Lab
from .. import qemu, room
from ..base import Expected, Peer, Reached, State
from .liveclone import find_qemu

DEADLINE_S = 300.0
ABILITIES = ("mapped-ram", "multifd", "events")


class MappedRam(Peer):
    name = "mapped-ram"
    words = "QEMU's migration into a file, mapped-ram with multifd"
    order = 50

    async def find_version(self, lab: Lab) -> str:
        return await find_qemu(lab)

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        with qemu.open_folders(lab, self.name) as (folder, hot):
            room.need(lab, ram_mib * MIB, ram_mib * MIB, "a machine and its file")
            async with qemu.open_warm(lab, ram_mib, folder) as (source, expected):
                layer = qemu.make_overlay(lab, folder / "next.qcow2", folder / "source.qcow2")
                state = Mapped(lab, ram_mib, folder, hot / "memory", expected)
                state.touched_mib = source.touched_mib()
                state.make_s, state.pause_ms = await _save(source, state.file, layer)
                yield state


class Mapped(State):
    """The file, and the frozen disk."""

    def __init__(self, lab: Lab, ram_mib: int, folder: Path, file: Path, expected: Expected) -> None:
        self.lab, self.ram_mib, self.folder, self.file, self.expected = lab, ram_mib, folder, file, expected
        self.herd = qemu.Herd(lab, ram_mib)

    async def start(self, count: int, reached: Reached) -> None:
        size = self.file.stat().st_blocks * 512
        room.need(self.lab, 0, count * size, f"{count} machines with all their memory")

        async def load(number: int) -> None:
            drive = self.folder / f"copy-{number}.qcow2"
            qemu.make_overlay(self.lab, drive, self.folder / "source.qcow2")
            one = await self.herd.launch(drive, ["-incoming", "defer", "-S"])
            await _set_up(one.session)
            async with one.session.watch("MIGRATION") as watch:
                await one.session.call("migrate-incoming", uri=f"file:{self.file}")
                await migration.wait_for_end(watch, one.session, "loading the memory", DEADLINE_S)
            await one.go_on()
            reached(one.copy)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(load(number))

    async def end(self) -> None:
        await self.herd.end()
        for drive in self.folder.glob("copy-*"):
            drive.unlink()


async def _save(source: qemu.Qemu, file: Path, layer: Path) -> tuple[float, float]:
    """Write the file, and return the time for it, in seconds, and the pause, in milliseconds."""
    began, session = time.monotonic(), source.session
    node, below = disk.new_node(), await disk.top(session)
    await disk.add_layer(session, layer, node)
    await _set_up(session, "pause-before-switchover")
    async with session.watch("MIGRATION") as watch, session.watch("STOP", "RESUME") as marks:
        await session.call("migrate", uri=f"file:{file}")
        event = await watch.until(_is_switchover, "copying the memory", DEADLINE_S)
        if migration.has_ended(event):
            raise await migration.failure(session, "copying the memory")
        await disk.freeze(session, node, below)
        await session.call("migrate-continue", state="pre-switchover")
        await migration.wait_for_end(watch, session, "saving the devices", DEADLINE_S)
        await source.go_on()
        return time.monotonic() - began, await qemu.pause_ms(marks)


def _is_switchover(event: dict[str, Any]) -> bool:
    return event["data"]["status"] == "pre-switchover" or migration.has_ended(event)


async def _set_up(session: Session, *more: str) -> None:
    switched = [{"capability": name, "state": True} for name in (*ABILITIES, *more)]
    await session.call("migrate-set-capabilities", capabilities=switched)
    channels = machine.cpus()
    await session.call("migrate-set-parameters", multifd_channels=channels, max_bandwidth=UNLIMITED)


PEER = MappedRam
