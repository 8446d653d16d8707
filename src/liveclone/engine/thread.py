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


async def run(work: Callable[[GoOn], T]) -> T:
    """Return what `work` does. It is given a function that raises OSError (ECANCELED) once we are cancelled."""
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
        task.exception()  # it is ours: nobody else is told
        raise
