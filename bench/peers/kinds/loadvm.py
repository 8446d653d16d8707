"""QEMU's internal snapshots: memory and devices inside the qcow2 file of the disk (`savevm`, `loadvm`).

    snapshot-save ── the guest stands still ──> warm.qcow2 ── cp ──> a copy's disk ── -loadvm ──> the copy

A copy writes its disk, and QEMU finds internal snapshots in a disk's own file alone, not below it: so each copy takes the
whole file, which is in the time for it. All on tmpfs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from liveclone.drivers.qemu import disk
from liveclone.drivers.qemu.session import Session
from liveclone.errors import HypervisorError
from liveclone.host import command
from liveclone.units import MIB

from ...lab import Lab
from .. import qemu, room
from ..base import Expected, Peer, Reached, State
from .liveclone import find_qemu

TAG = JOB = "warm"
SAVE_DEADLINE_S = 300.0
COPY_DEADLINE_S = 300.0


class Loadvm(Peer):
    name = "loadvm"
    words = "QEMU's internal snapshot, its file copied, -loadvm"
    order = 40

    async def find_version(self, lab: Lab) -> str:
        return await find_qemu(lab)

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        with qemu.open_folders(lab, self.name) as (_, hot):
            room.need(lab, ram_mib * MIB, ram_mib * MIB, "a machine and its snapshot")
            async with qemu.open_warm(lab, ram_mib, hot) as (source, expected):
                state = Internal(lab, ram_mib, hot, hot / "source.qcow2", expected)
                state.touched_mib = source.touched_mib()
                state.make_s, state.pause_ms = await _save(source.session)
                # From here on the file stays as it is, and can be copied.
                node = disk.new_node()
                layer = qemu.make_overlay(lab, hot / "next.qcow2", state.file)
                await disk.add_layer(source.session, layer, node)
                await disk.freeze(source.session, node, await disk.top(source.session))
                yield state


class Internal(State):
    """A qcow2 file with an internal snapshot."""

    def __init__(self, lab: Lab, ram_mib: int, folder: Path, file: Path, expected: Expected) -> None:
        self.lab, self.ram_mib, self.folder, self.file, self.expected = lab, ram_mib, folder, file, expected
        self.herd = qemu.Herd(lab, ram_mib)

    async def start(self, count: int, reached: Reached) -> None:
        size = self.file.stat().st_blocks * 512
        room.need(self.lab, count * size, count * size, f"{count} copies of the file, and their machines")

        async def load(number: int) -> None:
            drive = self.folder / f"copy-{number}.qcow2"
            await command.run(
                ["cp", "--reflink=auto", str(self.file), str(drive)], deadline_s=COPY_DEADLINE_S
            )
            reached((await self.herd.launch(drive, ["-loadvm", TAG])).copy)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(load(number))

    async def end(self) -> None:
        await self.herd.end()
        for drive in self.folder.glob("copy-*"):
            drive.unlink()


async def _save(session: Session) -> tuple[float, float]:
    """Take the snapshot, and return the time for it, in seconds, and the pause, in milliseconds."""

    def is_over(event: dict[str, Any]) -> bool:
        return bool(event["data"]["id"] == JOB and event["data"]["status"] == "concluded")

    began = time.monotonic()
    async with session.watch("JOB_STATUS_CHANGE") as watch, session.watch("STOP", "RESUME") as marks:
        node = await disk.top(session)
        await session.call("snapshot-save", job_id=JOB, tag=TAG, vmstate=node, devices=[node])
        await watch.until(is_over, "saving the snapshot", SAVE_DEADLINE_S)
        (job,) = [job for job in await session.call("query-jobs") if job["id"] == JOB]
        await session.call("job-dismiss", id=JOB)
        if "error" in job:
            raise HypervisorError("QEMU cannot take an internal snapshot", seen=job["error"])
        make_s = time.monotonic() - began
        return make_s, await qemu.pause_ms(marks)


PEER = Loadvm
