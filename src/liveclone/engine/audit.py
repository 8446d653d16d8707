"""Ask source and clones of a snapshot afresh who they are, let each draw randomness, and compare every one with every other.

The evidence of a clone tells of the moment when it was made. An audit tells of now: it observes the identity items again
and lets programs of the guest draw, each by its own way to randomness. All is digested under the family's key: by the
agent what it observes, here what was drawn.
"""

from __future__ import annotations

import asyncio
import hmac
import os

from ..errors import GuestError, Refused
from ..host import process
from ..identity.compare import compare
from ..model.audit import Audit, LeftOut, Member, Role
from ..model.base import now
from ..model.identity import ItemReport, ItemStatus
from ..model.machine import Machine
from ..model.snapshot import Snapshot
from . import agent as agents
from . import execute, identify
from .context import Context
from .holding import hold_machine

# How a program of the guest comes by random bytes -> a shell command that prints some. What a guest lacks prints nothing.
DRAWS = {
    "urandom": "head -c 16 /dev/urandom | od -An -v -tx1",
    "kernel-uuid": "cat /proc/sys/kernel/random/uuid",
    "uuidgen": "uuidgen --random",
    "openssl": "openssl rand -hex 16",
    "ssh-key": 'd=$(mktemp -d) && ssh-keygen -q -t ed25519 -N "" -C "" -f "$d/key" && cat "$d/key.pub"; rm -rf "$d"',
    "python": "python3 -c 'import random, uuid; print(random.SystemRandom().random(), random.random(), uuid.uuid4())'",
}


async def audit(ctx: Context, text: str) -> Audit:
    """Compare all running machines of a snapshot's family: its source, its clones, and what is recorded in itself.

    Raises:
        NotFound: there is no such snapshot. Refused: fewer than two run (code "nothing-to-compare").
        Conflict: another command works on one of them. GuestError, TimedOut: one cannot be asked, so nothing is known of it.
        Nothing was changed in any of them.
    """
    snapshot = ctx.snapshots.find(text)
    machines, left_out = _find_family(ctx, snapshot)
    if len(machines) < 2:
        raise Refused(
            f"fewer than two machines of {snapshot.name} run",
            code="nothing-to-compare",
            tried="auditing a snapshot's family",
            on=snapshot.name,
            seen=", ".join(machine.name for machine in machines) or "none runs",
            next_step=f"liveclone clone {snapshot.name} -n 2",
        )
    key = ctx.evidence(snapshot.id).key()
    gate = asyncio.Semaphore(os.cpu_count() or 1)
    asked = 0

    async def ask(machine: Machine) -> Member:
        nonlocal asked
        async with gate:
            member = await _ask(ctx, snapshot, machine, key)
        asked += 1
        ctx.progress(f"asked {asked} of {len(machines)}", asked / len(machines))
        return member

    answers = await asyncio.gather(*(ask(machine) for machine in machines), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    members = (_recorded(snapshot), *(answer for answer in answers if isinstance(answer, Member)))
    pairs, equal = compare(members)
    return Audit(
        snapshot=snapshot.id,
        snapshot_name=snapshot.name,
        at=now(),
        members=members,
        pairs=pairs,
        equal=equal,
        left_out=left_out,
    )


def _find_family(ctx: Context, snapshot: Snapshot) -> tuple[list[Machine], tuple[LeftOut, ...]]:
    """Return the machines to ask, the source first, and those that cannot be asked."""
    family = [one for one in ctx.machines.list() if snapshot.id == one.clone_of or one.id == snapshot.source]
    family.sort(key=lambda one: one.id != snapshot.source)
    asked, left_out = [], []
    for machine in family:
        if not process.is_alive(machine.process):
            left_out.append(LeftOut(name=machine.name, reason="it does not run"))
        elif machine.quarantined:
            left_out.append(LeftOut(name=machine.name, reason="it is in quarantine"))
        else:
            asked.append(machine)
    return asked, tuple(left_out)


async def _ask(ctx: Context, snapshot: Snapshot, machine: Machine, key: bytes) -> Member:
    async with hold_machine(ctx, machine.id, f"audit of {snapshot.name}") as held:
        handle = await ctx.driver_for(held.driver).open(held, ctx.layout.machine(held.id))
        try:
            async with agents.connect(handle, held.name) as agent:
                items = await identify.look(agent, key)
        finally:
            await handle.close()
    digests = _digests(items) | await _draw(ctx, machine, key)
    role = Role.SOURCE if machine.id == snapshot.source else Role.CLONE
    return Member(id=machine.id, name=machine.name, role=role, digests=digests)


async def _draw(ctx: Context, machine: Machine, key: bytes) -> dict[str, str]:
    """Let the guest's programs draw; returns a digest for each that it has."""
    lines = [f'value=$({command} 2>/dev/null) && echo "{name}" $value' for name, command in DRAWS.items()]
    code, out, err = await execute.ask(ctx, machine, ["sh", "-c", "\n".join([*lines, "exit 0"])])
    drawn = dict(line.split(" ", 1) for line in out.splitlines() if " " in line)
    if code or not drawn:
        raise GuestError(
            f"{machine.name} draws no random bytes",
            code="no-draw",
            tried="drawing randomness in the guest",
            on=machine.name,
            seen=err.strip()[-200:] or f"exit code {code}, no output",
            next_step=f"liveclone exec {machine.name} -- head -c 16 /dev/urandom",
        )
    return {f"draw {name}": _digest(key, name, value) for name, value in drawn.items() if name in DRAWS}


def _digest(key: bytes, name: str, value: str) -> str:
    return hmac.digest(key, f"draw {name}\0{value}".encode(), "sha256").hex()


def _recorded(snapshot: Snapshot) -> Member:
    return Member(
        id=snapshot.id,
        name=f"snapshot {snapshot.name}",
        role=Role.SNAPSHOT,
        digests=_digests(snapshot.items),
    )


def _digests(items: tuple[ItemReport, ...]) -> dict[str, str]:
    """Return the values that have to differ: not those that are shared by their nature."""
    return {item.item: item.before for item in items if item.before and item.status is not ItemStatus.SHARED}
