"""After a capture died with the process that ran it: libvirtd may still be at it. End that, and take the layer off.

libvirt's job still runs       it is aborted; libvirt undoes what it did. Another's (a migration): Conflict, it is left alone
the domain stands still        it goes on
the domain is on the layer     what it holds goes into the one below; where that fails the machine stays on it
the domain has ended           the same, and its definition names the disk that it had
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import libvirt

from ...errors import HypervisorError, Interrupted, LivecloneError, TimedOut
from ...model.machine import Machine, Memory, MemorySource
from ..base import Recovered
from . import disk
from .connection import SNAPSHOT, Connection
from .link import Link
from .registry import DomainRef

_TRIES = 4  # libvirt gives each 30 s to get hold of the domain


async def recover(connection: Connection, machine: Machine, facts: dict[str, Any]) -> Recovered:
    """Leave the domain running, and on the disk that it had if that can be; see the module."""
    await connection.check_free(
        "settling an interrupted capture", f"liveclone repair {connection.name}", but=SNAPSHOT
    )
    with contextlib.suppress(libvirt.libvirtError):
        await asyncio.to_thread(connection.domain.abortJob)
    await _let_run(connection)
    forget_save(facts)
    left = False
    for layer in _layers(facts):
        try:
            await disk.take_off(connection, layer)
        except Interrupted:
            raise
        except LivecloneError:
            on_it = bool(disk.find_target(await connection.read(), layer))
            left = left or on_it or disk.holds(connection.process, layer)
    memory = machine.memory or Memory(path="", source=MemorySource.ANONYMOUS)
    return Recovered(connection.process, memory, left)


async def recover_stopped(link: Link, ref: DomainRef, facts: dict[str, Any]) -> None:
    """Let a domain that ended in a capture start from the disk that it had; see `disk.put_back`."""
    forget_save(facts)
    for layer in _layers(facts):
        present = next((one["present"] for one in facts.get("disks", ()) if one["layer"] == str(layer)), "")
        await disk.put_back(link, ref, layer, present)


def forget_save(facts: dict[str, Any]) -> None:
    """Remove the save image that was on its way."""
    if facts.get("save"):
        Path(facts["save"]).unlink(missing_ok=True)


def _layers(facts: dict[str, Any]) -> list[Path]:
    return [Path(layer) for layer in facts.get("layers", ())]


async def _let_run(connection: Connection) -> None:
    """Let the domain run; returns when libvirt has ended what it was at, for only then does it resume a domain.

    That it runs already is found out the same way: asked for its state alone it answers in the middle of a job.
    """
    for attempt in range(_TRIES):
        try:
            await connection.call("resuming", connection.domain.resume)
        except TimedOut:
            if attempt == _TRIES - 1:
                raise
        except HypervisorError:  # it runs already
            break
        else:
            break
    await connection.resume()
