"""Run one operation under asyncio so that a signal undoes it instead of killing it.

    SIGINT, SIGTERM, SIGHUP ── the operation is cancelled ── its undo runs ── we end with 128 + the signal's number
    the same again          ── a word on stderr; the undo goes on

SIGKILL remains; what it leaves behind is settled by the next command, or by `liveclone repair`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

Handler = Callable[[signal.Signals], bool]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal ended the operation; what it had begun is undone, unless a note says what stands."""

    def __init__(self, number: signal.Signals, notes: Sequence[str] = ()) -> None:
        super().__init__(number)
        self.number = number
        self.notes = notes


def run(work: Coroutine[Any, Any, T], handler: Handler | None = None) -> T:
    """Run `work` to its end and return its result.

    Args:
        handler: asked first at each signal; True says that it has dealt with it.

    Raises:
        Stopped: a signal came, and the undo is done. Threads may still wait for a lock: the process should end
            without waiting for them.
    """
    loop = asyncio.new_event_loop()
    received: list[signal.Signals] = []
    try:
        task = loop.create_task(work)

        def stop(number: signal.Signals) -> None:
            if handler is not None and not received and handler(number):
                return
            if received:
                sys.stderr.write("liveclone: still undoing; this must not be cut short\n")
                sys.stderr.flush()
                return
            received.append(number)
            task.cancel()

        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                loop.add_signal_handler(number, stop, number)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError as error:
            if not received:
                raise
            raise Stopped(received[0], getattr(error, "__notes__", ())) from None
        except Exception as error:
            if not received:
                raise
            raise Stopped(received[0]) from error  # the undo failed, or an error came just before the signal
    finally:
        _close(loop, in_haste=bool(received))


def _close(loop: asyncio.AbstractEventLoop, *, in_haste: bool) -> None:
    async def end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await loop.shutdown_asyncgens()
        if not in_haste:
            await loop.shutdown_default_executor()

    loop.run_until_complete(end())
    if not in_haste:
        loop.close()
