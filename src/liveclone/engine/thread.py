"""Long blocking work in a thread that ends when the command does.

A thread cannot be cancelled. So what works in one asks between two pieces whether it shall go on, and whoever is cancelled
waits for its end: nothing is written any more when the undo begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

GoOn = Callable[[], None]


def nothing() -> None:
    """Undo nothing: the caller removes all that there is."""


async def run(work: Callable[[GoOn], T], undo: Callable[[], None] = nothing) -> T:
    """Return what `work` does. It is given a function that raises OSError (ECANCELED) once we are cancelled.

    Args:
        undo: called if we are cancelled and the work came to its end all the same.
    """
    stop = threading.Event()

    def go_on() -> None:
        if stop.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    task = asyncio.ensure_future(asyncio.to_thread(work, go_on))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if task.exception() is None:
            undo()
        raise
