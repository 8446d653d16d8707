"""Whether this host has room for full copies, asked beforehand: a tmpfs that is full would end machines (SIGBUS)."""

from __future__ import annotations

from liveclone.errors import Refused
from liveclone.host import machine
from liveclone.units import GIB, render_size

from ..lab import Lab

LEFT = GIB  # of memory, for everybody else


def need(lab: Lab, on_tmpfs: int, besides: int, what: str) -> None:
    """See that there are so many bytes of memory, `on_tmpfs` and `besides`.

    Raises:
        Refused: there are not.
    """
    tmpfs, memory = (
        machine.file_system(lab.ctx.layout.hot).free_bytes,
        machine.memory().available_bytes - LEFT,
    )
    if on_tmpfs <= tmpfs and on_tmpfs + besides <= memory:
        return
    raise Refused(
        f"no room for {what}",
        code="no-memory",
        tried="looking for memory",
        seen=f"{render_size(on_tmpfs)} on tmpfs and {render_size(besides)} besides are needed, "
        f"{render_size(tmpfs)} and {render_size(max(memory, 0))} of memory in all are free",
    )
