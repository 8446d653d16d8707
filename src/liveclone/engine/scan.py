"""Ask a guest what in it is not safe to copy, and let a policy say what that does to a snapshot."""

from __future__ import annotations

import msgspec

from ..errors import GuestError
from ..identity import policy as policies
from ..model.base import now
from ..model.scan import FailedCheck, Scan, ScanFinding
from . import agent as agents
from .agent import Agent
from .context import Context
from .execute import find_running
from .holding import hold_machine

DEADLINE_S = 30.0

Report = tuple[tuple[ScanFinding, ...], tuple[FailedCheck, ...], tuple[str, ...], float]


async def scan(ctx: Context, text: str, policy: str = policies.DEFAULT) -> Scan:
    """Scan a running machine, and judge what is found. Nothing in it is changed.

    Args:
        policy: the name of a shipped one, or a file.

    Raises:
        NotFound: no such machine, or it does not run; no such policy. Refused: that is no policy.
        GuestError, TimedOut: its agent does not answer, or has no scan.
    """
    judge = policies.load(policy)
    found = find_running(ctx, text)
    async with hold_machine(ctx, found.id, f"scan of {found.name}") as machine:
        handle = await ctx.driver.open(machine, ctx.layout.machine(machine.id))
        try:
            async with agents.connect(handle, machine.name) as agent:
                findings, failed, checks, took_ms = await look(agent)
        finally:
            await handle.close()
    return Scan(
        machine=machine.id,
        name=machine.name,
        at=now(),
        policy=policy,
        checks=checks,
        findings=findings,
        failed=failed,
        verdicts=judge.judge(findings, failed),
        took_ms=took_ms,
    )


async def look(agent: Agent) -> Report:
    """Return what the agent says: findings, checks that failed, names of those that ran, and milliseconds."""
    answer = await agent.call("scan", deadline_s=DEADLINE_S, repeat=True)
    try:
        findings = msgspec.convert(answer["findings"], tuple[ScanFinding, ...])
        failed = msgspec.convert(answer["failed"], tuple[FailedCheck, ...])
        checks = msgspec.convert(answer["checks"], tuple[str, ...])
        took_ms = float(answer["took_ms"])
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise GuestError(
            f"the agent of {agent.name} reports its scan in a form that is not understood",
            code="bad-report",
            tried="reading the scan",
            on=agent.name,
            seen=str(error),
            next_step="rebuild the image, so that its agent is of this version",
        ) from error
    return findings, failed, checks, took_ms
