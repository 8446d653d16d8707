"""After a capture died with the process that ran it: find out on which side it stopped, and finish or undo.

Nothing is believed that can be asked. The notes say only which processes and layers there may be:

    successor alive and running        the handover was done: end the old process, take the new one
    successor alive, not running       undo: end the successor, resume the old process
    old process gone, successor waits  the state is loaded and nobody else has it: resume the successor
    a layer was frozen (background)    what it holds goes into the one below; where that fails the machine stays on it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import LivecloneError, NotFound
from ...host import process
from ...model.machine import Machine, MachineState, Memory, MemorySource, ProcessRef
from ..base import Recovered
from . import disk, launch, migration
from .handle import QemuHandle
from .session import open_session


async def recover(machine: Machine, folder: Path, facts: dict[str, Any]) -> Recovered:
    """Leave exactly one process for the machine, running; see the module.

    Raises:
        NotFound: neither process is there any more (code "not-running").
    """
    successor = _successor(facts)
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
            seen="its QEMU is gone",
            source_state="stopped; its disk is as the guest last wrote it",
            next_step=f"liveclone start {machine.name}",
        )
    session = await open_session(machine.name, launch.socket_path(folder, "qmp"), launch.log_path(folder))
    handle = QemuHandle(machine.name, folder, machine.hardware, machine.process, session)
    try:
        on_next_disk = await _settle_in_place(handle, facts)
    finally:
        await handle.close()
    return Recovered(machine.process, machine.memory, on_next_disk)


def _successor(facts: dict[str, Any]) -> ProcessRef | None:
    found = facts.get("successor")
    return ProcessRef(**found) if isinstance(found, dict) else found


async def _settle_handover(
    machine: Machine, folder: Path, facts: dict[str, Any], successor: ProcessRef
) -> Recovered | None:
    """Finish the handover if it was past its point of no return, or if only the successor is left; else undo it."""
    run = folder / facts["run"]
    session = await open_session(machine.name, run / "qmp", launch.log_path(folder))
    handle = QemuHandle(machine.name, folder, machine.hardware, successor, session)
    state = await handle.state()
    old_alive = process.is_alive(machine.process)
    loaded = state in (MachineState.RUNNING, MachineState.PAUSED)
    if state is MachineState.RUNNING or (loaded and not old_alive):
        if machine.process is not None:
            await process.end(machine.process)
        await handle.resume()
        await handle.close()
        launch.adopt(folder, run)
        memory = Memory(path=facts["memory"], source=MemorySource.PRIVATE_HOT)
        return Recovered(successor, memory, on_next_disk=True)
    await handle.close()
    await process.end(successor)
    launch.discard(run)
    return None


async def _settle_in_place(handle: QemuHandle, facts: dict[str, Any]) -> bool:
    """Stop what QEMU still does for the dead capture, let the machine run, take the new layer off.

    Returns whether the machine writes the new layer: one that cannot be taken off now is no harm, it stays.
    """
    session = handle.session
    await migration.give_up(session)
    await handle.resume()
    await migration.set_abilities(session)
    node = facts.get("node", "")
    if not node:
        return False
    frozen: bool = await disk.top(session) == node
    try:
        await disk.take_off(session, Path(facts["layer"]), node, facts["below"])
    except LivecloneError:
        return frozen
    return False
