"""Say how far an operation is, on stderr, once it takes longer than a moment.

On a terminal one line that changes; elsewhere a line for each step. Operations that end within `PATIENCE_S` say nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from . import output

if TYPE_CHECKING:
    from rich.status import Status

PATIENCE_S = 1.0


class Progress:
    """Use as a context manager, within a running event loop.

    Args:
        shown: whether to say anything at all.
        lines: lines even on a terminal (beside a log, which would tear a line that changes).
    """

    def __init__(self, *, shown: bool, lines: bool) -> None:
        self._shown = shown
        self._lines = lines or not sys.stderr.isatty()
        self._began = time.monotonic()
        self._latest = ""
        self._said = ""
        self._status: Status | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Progress:
        if self._shown:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._show)
        return self

    def __exit__(self, *_: object) -> None:
        self._shown = False
        if self._timer is not None:
            self._timer.cancel()
        if self._status is not None:
            self._status.stop()

    def report(self, step: str, fraction: float | None = None) -> None:
        """Note that `step` has begun, or how far the whole is (0 to 1); any thread may call."""
        share = f"{fraction:4.0%} " if fraction else ""
        self._latest = share + output.clean(step)
        if time.monotonic() - self._began >= PATIENCE_S:
            self._show()

    def _show(self) -> None:
        if not self._shown or self._latest == self._said:
            return
        self._said = self._latest
        if self._lines:
            sys.stderr.write(f"liveclone: {self._latest}\n")
            sys.stderr.flush()
            return
        if self._status is None:
            from rich.console import Console
            from rich.status import Status

            self._status = Status("", console=Console(stderr=True, highlight=False, markup=False))
            self._status.start()
        self._status.update(self._latest)
