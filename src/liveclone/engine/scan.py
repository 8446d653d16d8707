"""Ask a guest what in it is not safe to copy, and let a policy say what that does to a snapshot."""

from __future__ import annotations

import msgspec

from ..drivers.base import Handle
from ..errors import GuestError, Refused
from ..identity import policy as policies
from ..identity.policy import Policy
from ..model.base import now
from ..model.machine import Machine
from ..model.scan import Action, FailedCheck, Scan, ScanFinding, Verdict
from . import agent as agents
from .agent import Agent
from .context import Context
from .execute import find_running
from .holding import hold_machine

DEADLINE_S = 60.0

Report = tuple[tuple[ScanFinding, ...], tuple[FailedCheck, ...], tuple[str, ...], float]


async def scan(ctx: Context, text: str, policy: str = policies.DEFAULT) -> Scan:
    """Scan a running machine, and judge what is found. Nothing in it is changed.

    Args:
        policy: the name of a shipped one, or a file.

    Raises:
        NotFound: no such machine, or it does not run; no such policy. Refused: that is no policy.
        GuestError, TimedOut: its agent does not answer.
    """
    judge = policies.load(policy)
    found = find_running(ctx, text)
    async with hold_machine(ctx, found.id, f"scan of {found.name}") as machine:
        handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
        try:
            return await examine(handle, machine, judge)
        finally:
            await handle.close()


async def examine(handle: Handle, machine: Machine, policy: Policy) -> Scan:
    """Scan a machine that the caller holds."""
    async with agents.connect(handle, machine.name) as agent:
        findings, failed, checks, took_ms = await look(agent)
    return Scan(
        machine=machine.id,
        name=machine.name,
        at=now(),
        policy=policy.name,
        checks=checks,
        verdicts=policy.judge(findings, failed),
        took_ms=took_ms,
    )


def check(scan: Scan) -> None:
    """Raise Refused, with all that speaks against a snapshot, if the policy does not take one (code "unsafe")."""
    against = scan.of(Action.REFUSE)
    if not against:
        return
    raise Refused(
        f"{scan.name} holds what the policy {scan.policy} does not let two machines have",
        code="unsafe",
        tried="the clone-safety scan before a snapshot",
        on=scan.name,
        seen="; ".join(_say(verdict) for verdict in against),
        source_state="running, not touched",
        next_step=f"liveclone scan {scan.name} says what to do about each; or give another --policy (docs/scan.md)",
    )


def _say(verdict: Verdict) -> str:
    one = verdict.finding
    if isinstance(one, FailedCheck):
        return f"{one.check} could not look: {one.error}"
    return f"{one.check}: {one.subject} ({one.seen})"


async def look(agent: Agent) -> Report:
    """Return what the agent says: findings, checks that failed, names of those that ran, and milliseconds.

    An agent from before the scan is a check that failed.
    """
    try:
        answer = await agent.call("scan", deadline_s=DEADLINE_S, repeat=True)
    except GuestError as error:
        if error.code != "agent-unknown-call":
            raise
        return (), (FailedCheck(check="scan", error="the image's agent is from before the scan"),), (), 0.0
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
