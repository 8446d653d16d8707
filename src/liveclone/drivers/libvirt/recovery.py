"""After a capture died with the process that ran it: libvirtd may still be at it. End that, and take the layer off.

libvirt's job still runs       it is aborted; libvirt undoes what it did
the domain stands still        it goes on
the domain is on the layer     what it holds goes into the one below; where that fails the machine stays on it
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import libvirt

from ...errors import LivecloneError, TimedOut
from ...model.machine import Machine, Memory, MemorySource
from ..base import Recovered
from . import disk
from .connection import Connection

_TRIES = 4  # libvirt gives each 30 s to get hold of the domain


async def recover(connection: Connection, machine: Machine, facts: dict[str, Any]) -> Recovered:
    """Leave the domain running, and on the disk that it had if that can be; see the module."""
    with contextlib.suppress(libvirt.libvirtError):
        await asyncio.to_thread(connection.domain.abortJob)
    for attempt in range(_TRIES):
        try:
            await connection.resume()
            break
        except TimedOut:
            if attempt == _TRIES - 1:
                raise
    for save in [facts["save"]] if facts.get("save") else []:
        Path(save).unlink(missing_ok=True)
    on_next_disk = False
    for layer in map(Path, facts.get("layers", ())):
        on_next_disk = bool(disk.find_target(await connection.read(), layer))
        with contextlib.suppress(LivecloneError):
            await disk.take_off(connection, layer)
            on_next_disk = False
    memory = machine.memory or Memory(path="", source=MemorySource.ANONYMOUS)
    return Recovered(connection.process, memory, on_next_disk)
