"""After a capture died with the process that ran it: find out on which side it stopped, and finish or undo.

The same questions as drivers/qemu/recovery.py, put to the processes themselves:

    successor runs, or is loaded and alone     the handover is done: end the old process, take the new one
    successor waits, old process alive         undo: end the successor, resume the old process
    a layer was frozen                         resume; write the layer back into the one below
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import LivecloneError, NotFound
from ...host import process
from ...model.machine import Machine, MachineState, Memory, MemorySource, ProcessRef
from ..base import Recovered
from . import launch
from .handle import FakeHandle
from .wire import open_wire


async def recover(machine: Machine, folder: Path, facts: dict[str, Any]) -> Recovered:
    """Leave exactly one process for the machine, running; see the module.

    Raises:
        NotFound: neither process is there any more (code "not-running").
    """
    found = facts.get("successor")
    successor = ProcessRef(**found) if isinstance(found, dict) else found
    if successor is not None and process.is_alive(successor):
        settled = await _settle_handover(machine, folder, facts, successor)
        if settled is not None:
            return settled
    if machine.process is None or machine.memory is None or not process.is_alive(machine.process):
        launch.clear(folder)
        raise NotFound(
            f"{machine.name} does not run any more",
            code="not-running",
            tried="recovering it after an interrupted snapshot",
            on=machine.name,
            seen="its process is gone",
            source_state="stopped; its disk is as the guest last wrote it",
            next_step=f"liveclone start {machine.name}",
        )
    launch.adopt(folder, (folder / launch.CURRENT).resolve())
    handle = await connect(machine, machine.process, folder, folder / launch.CURRENT)
    try:
        on_next_disk = await _settle_in_place(handle, facts)
    finally:
        await handle.close()
    return Recovered(machine.process, machine.memory, on_next_disk)


async def connect(machine: Machine, process_ref: ProcessRef, folder: Path, run: Path) -> FakeHandle:
    """Return a handle to the process whose sockets are in `run`."""
    wire = await open_wire(machine.name, run / "control", launch.log_path(folder))
    return FakeHandle(machine.name, folder, machine.hardware, process_ref, wire)


async def _settle_handover(
    machine: Machine, folder: Path, facts: dict[str, Any], successor: ProcessRef
) -> Recovered | None:
    run = folder / facts["run"]
    handle = await connect(machine, successor, folder, run)
    try:
        state = await handle.state()
        loaded = state in (MachineState.RUNNING, MachineState.PAUSED)
        if state is MachineState.RUNNING or (loaded and not process.is_alive(machine.process)):
            if machine.process is not None:
                await process.end(machine.process)
            await handle.resume()
            launch.adopt(folder, run)
            memory = Memory(path=facts["memory"], source=MemorySource.PRIVATE_HOT)
            return Recovered(successor, memory, on_next_disk=True)
    finally:
        await handle.close()
    await process.end(successor)
    launch.discard(run)
    return None


async def _settle_in_place(handle: FakeHandle, facts: dict[str, Any]) -> bool:
    """Let the machine run and take the new layer off; one that cannot be taken off is no harm, it stays.

    Returns whether the machine writes the new layer. The capture itself ended with the connection it was asked over.
    """
    await handle.resume()
    if (await handle.wire.call("status"))["disk"] != facts.get("node"):
        return False
    try:
        await handle.wire.call("thaw")
    except LivecloneError:
        return True
    Path(facts["node"]).unlink(missing_ok=True)
    return False
