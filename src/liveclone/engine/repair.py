"""Settle operations that died, and sweep up: what `liveclone repair` does, with `seal.start_again`."""

from __future__ import annotations

import contextlib

from ..errors import GuestError, LivecloneError, NotFound, Unsupported
from ..host import locks, process
from ..model.machine import Machine
from . import disposal, pool, scrub, siblings
from .context import Context
from .holding import hold_machine


async def settle(ctx: Context, text: str) -> list[str]:
    """Settle an interrupted operation on one machine, if there is one; returns its name then.

    Raises:
        NotFound: there is no such machine. Conflict: another command works on it and does not end.
        GuestError: it runs, and does not take back the secrets that were taken out of it; they are kept.
    """
    machine = ctx.machines.find(text)
    interrupted = _is_interrupted(ctx, machine)
    with contextlib.suppress(NotFound):  # settling may mean to remove it
        async with hold_machine(ctx, machine.id, f"repair of {machine.name}"):
            pass
    _check_back(ctx, [machine.id])
    return [machine.name] if interrupted else []


async def settle_all(ctx: Context) -> list[str]:
    """Settle every interrupted operation that nobody is working on; returns the names of the machines concerned.

    Raises:
        GuestError: as in `settle`. LivecloneError: one could not be settled. In both cases what can be done for the
            others is done first, and the first such error is told.
    """
    settled, concerned = [], []
    failed: list[LivecloneError] = []
    machines = ctx.machines.list()
    for machine in machines:
        if not _is_interrupted(ctx, machine) or locks.is_held(ctx.layout.lock(f"machine-{machine.id}")):
            continue
        concerned.append(machine.id)
        try:
            async with hold_machine(ctx, machine.id, "repair"):
                pass
        except NotFound:  # settling may mean to remove it
            pass
        except LivecloneError as error:
            failed.append(error)
            continue
        settled.append(machine.name)
    await pool.settle(ctx)
    siblings.put_back_all(ctx)
    disposal.sweep(ctx)
    for name in {ctx.driver.name, *(machine.driver for machine in machines)}:
        with contextlib.suppress(Unsupported):  # its library is not here: nobody can have left anything
            await ctx.driver_for(name).sweep()
    if failed:
        raise failed[0]
    _check_back(ctx, concerned)
    return settled


def _is_interrupted(ctx: Context, machine: Machine) -> bool:
    return ctx.journal(machine.id).read() is not None or _is_without_secrets(ctx, machine)


def _is_without_secrets(ctx: Context, machine: Machine) -> bool:
    """Tell whether something is to be brought back now: a machine that has stopped gets it at its next start."""
    return scrub.is_due(ctx, machine) and process.is_alive(machine.process)


def _check_back(ctx: Context, machine_ids: list[str]) -> None:
    for machine in ctx.machines.list():
        if machine.id in machine_ids and _is_without_secrets(ctx, machine):
            raise GuestError(
                f"the secrets of {machine.name} that were taken out for a snapshot are not back in it",
                code="not-back",
                tried="bringing them back",
                on=machine.name,
                seen="its agent does not take them; they are kept",
                next_step=f"liveclone console {machine.name}, see whether liveclone-agent runs in it; then liveclone repair",
            )
