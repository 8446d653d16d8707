"""Of many clones at once, those that are ready leave the host's processors to those that still come up.

What a clone puts off until it is ready (sshd's new start, udev, the journal: two seconds of a processor emulated) would
otherwise compete with its siblings, and all would be ready late. A ready one serves meanwhile with what is left. Where
our user may not put a process back (`host.priority`) all share alike. If we are killed, those that were ready stay
last until `liveclone repair`, or until they stop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..host import priority
from ..model.machine import Machine, ProcessRef
from .context import Context


class Siblings:
    """Those of one request that are ready."""

    def __init__(self, count: int) -> None:
        self._yield = count > (os.cpu_count() or 1) and priority.may_put_back()
        self._last: list[ProcessRef] = []

    def leave(self, machine: Machine) -> None:
        """Put a clone last that is ready, unless there is a processor for each."""
        if self._yield and machine.process is not None:
            self._last.append(machine.process)
            priority.put_last(machine.process)

    def put_back(self) -> None:
        """Let all have the same share again."""
        while self._last:
            priority.put_back(self._last.pop())


@contextlib.contextmanager
def coming_up(count: int) -> Iterator[Siblings]:
    """Have `count` clones come up in the block; afterwards all have the same share, however it ends."""
    siblings = Siblings(count)
    try:
        yield siblings
    finally:
        siblings.put_back()


def put_back_all(ctx: Context) -> None:
    """Undo what a command left that was killed."""
    for machine in ctx.machines.list():
        if machine.process is not None and priority.is_last(machine.process) and priority.may_put_back():
            priority.put_back(machine.process)
