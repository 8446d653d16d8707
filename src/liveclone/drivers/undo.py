"""Undo that every driver needs."""

from __future__ import annotations

from typing import Protocol

from ..errors import Interrupted, LivecloneError
from ..model.machine import MachineState


class Resumable(Protocol):
    """A machine that can be let run."""

    async def resume(self) -> None: ...

    async def state(self) -> MachineState: ...


async def resume_after(handle: Resumable) -> None:
    """Let a machine run again whose capture failed, whatever else is wrong; the caller shields it.

    Raises:
        Interrupted: its process is gone, so there is nothing to resume.
    """
    try:
        await handle.resume()
    except Interrupted:
        raise
    except LivecloneError:
        if await handle.state() is not MachineState.RUNNING:
            raise
