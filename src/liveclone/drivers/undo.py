"""Undo that every driver needs, and its opposite: work that is past the point where it can be undone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from ..errors import Interrupted, LivecloneError
from ..model.machine import MachineState

T = TypeVar("T")


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


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Carry `work` to its end though we are cancelled meanwhile; the cancelling comes at the caller's next await."""
    task, this, cancelled = asyncio.ensure_future(work), asyncio.current_task(), False
    assert this is not None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            this.uncancel()  # counted, and asked for again below
            cancelled = True
    if cancelled:
        this.cancel()
    return task.result()
