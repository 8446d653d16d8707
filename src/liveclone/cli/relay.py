"""Between our terminal and a guest's console, until the user leaves or the machine stops."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from ..engine.context import Context
from ..engine.turns import find_again
from ..errors import GuestError
from ..model.machine import Machine
from . import streams

DETACH = b"\x1d"  # ctrl-]
_RECENT_BYTES = 4096


def find_recent(log: Path) -> bytes:
    """Return the end of a console's log, from the beginning of a line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _RECENT_BYTES))
            data = file.read()
    except FileNotFoundError:
        return b""
    return data if len(data) < _RECENT_BYTES else data.partition(b"\n")[2]


class Relay:
    """One connection; a handover in between only changes the socket."""

    def __init__(self, ctx: Context, machine: Machine) -> None:
        self.ctx, self.machine = ctx, machine
        self.writer: asyncio.StreamWriter | None = None

    async def carry_out(self) -> None:
        typing = asyncio.ensure_future(self._type())
        showing = asyncio.ensure_future(self._show())
        try:
            await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
            if showing.done():
                showing.result()
        finally:
            for task in (typing, showing):
                task.cancel()
            await asyncio.gather(typing, showing, return_exceptions=True)

    async def _type(self) -> None:
        while data := await streams.read(4096):
            keys, detach, _ = data.partition(DETACH)
            if self.writer is not None and keys:
                self.writer.write(keys)
                with contextlib.suppress(OSError):
                    await self.writer.drain()
            if detach:
                return

    async def _show(self) -> None:
        while True:
            folder = self.ctx.layout.machine(self.machine.id)
            reader, self.writer = await self.ctx.driver_for(self.machine.driver).connect_port(
                self.machine, folder, "console"
            )
            try:
                with contextlib.suppress(OSError):
                    while data := await reader.read(65536):
                        await streams.write_out(data)
            finally:
                self.writer.close()
            ended = GuestError("the console ended", tried="reading the console", seen="end of file")
            self.machine = await find_again(self.ctx, self.machine, ended)
