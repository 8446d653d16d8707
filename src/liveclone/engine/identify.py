"""Give a machine its identity through its agent: a first one, a clone's, a source's after a snapshot."""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from ..errors import GuestError
from ..identity import verify
from ..model.base import now
from ..model.identity import Cards, Evidence, Finding, Generation, ItemReport, ItemStatus
from ..model.machine import Acceleration, Machine
from ..model.parameters import NONE, Parameters
from .agent import Agent

SEED_BYTES = 64  # 512 bits, twice what the kernel's generator holds

# Six items take 0.2-0.3 s under emulation; hooks of applications come on top.
IDENTIFY_DEADLINE_S = 30.0
PREPARE_DEADLINE_S = 20.0
LOOK_DEADLINE_S = 60.0  # all the others may be at work, too
_COMES_UP_S = 1.0  # a clone, beside others
_RSA_S = {Acceleration.TCG: 6.0, Acceleration.KVM: 0.4}  # of a processor, to make a key
BOOT_DEADLINE_S = (
    180.0  # power-on to agent takes 11-13 s under emulation, several times that on a loaded host
)


def next_generation(generation: Generation) -> Generation:
    """Return the generation that follows."""
    return Generation(counter=generation.counter + 1, uuid=str(uuid.uuid4()))


def first_generation() -> Generation:
    return Generation(counter=0, uuid=str(uuid.uuid4()))


async def observe(agent: Agent, key: bytes, snapshot_id: str) -> tuple[ItemReport, ...]:
    """Let the source prepare for its snapshot and return its identity as it is now."""
    answer = await agent.call(
        "prepare", {"key": key.hex(), "snapshot": snapshot_id}, deadline_s=PREPARE_DEADLINE_S
    )
    return _reports(answer, agent.name)


async def look(agent: Agent, key: bytes) -> tuple[ItemReport, ...]:
    """Return a machine's identity as it is now, and change nothing."""
    answer = await agent.call("observe", {"key": key.hex()}, deadline_s=LOOK_DEADLINE_S, repeat=True)
    return _reports(answer, agent.name)


def rest_s(place: int, count: int, acceleration: Acceleration) -> float:
    """Return for how long clone `place` of `count` at once lets the others have the processors, in seconds.

    Those after it come up first. Then each makes its RSA key in its turn, on half of the host: all at once, they would let
    no one else work.
    """
    makers = max(1, (os.cpu_count() or 1) // 2)
    return (count - 1 - place) * _COMES_UP_S + place * _RSA_S[acceleration] / makers


async def become(
    agent: Agent,
    machine: Machine,
    key: bytes,
    snapshot_id: str,
    given: Parameters = NONE,
    rest_s: float = 0.0,
) -> Evidence:
    """Make the guest a machine of its own, and return what it reports (not judged yet).

    What takes seconds of processor time, and is not needed at once, it begins after `rest_s`.

    An application that could not become another machine's speaks against it.
    """
    evidence, failed = await _change(
        "identify",
        agent,
        machine,
        key,
        snapshot_id,
        hostname=given.hostname or machine.name,
        ssh_keys=given.ssh_keys,
        user_data=given.user_data,
        metadata=given.metadata,
        rest_s=rest_s,
    )
    changed: Evidence = evidence.replace(findings=failed)
    return changed


def with_cards(
    machine: Machine, evidence: Evidence, cards: Cards, source_addresses: tuple[str, ...]
) -> Evidence:
    """Add to a clone's evidence what is seen of its NICs, and the verdict on that.

    Args:
        machine: with the addresses that its guest has now.
        source_addresses: that it must not have given itself.
    """
    addresses = [nic.address for nic in machine.nics if nic.address]
    findings = (*verify.judge_cards(cards), *verify.judge_addresses(addresses, source_addresses))
    report = ItemReport(
        item=verify.NETWORK,
        required=True,
        status=ItemStatus.FAILED if findings else ItemStatus.CONFIGURED,
        details={"mac": ",".join(cards.given), "address": ",".join(addresses)},
        error="; ".join(finding.reason for finding in findings),
    )
    others = tuple(item for item in evidence.items if item.item != verify.NETWORK)
    changed: Evidence = evidence.replace(
        items=(*others, report), cards=cards, findings=evidence.findings + findings
    )
    return changed


def not_verified(machine: Machine, evidence: Evidence) -> GuestError:
    """Return the error for a clone that something was found against."""
    first = evidence.findings[0]
    more = f" (and {len(evidence.findings) - 1} more)" if len(evidence.findings) > 1 else ""
    return GuestError(
        f"{machine.name} is not verified as a machine of its own: {first.item}: {first.reason}{more}",
        code="not-verified",
        tried="verifying the clone's identity",
        on=machine.name,
        seen="; ".join(f"{finding.item}: {finding.reason}" for finding in evidence.findings),
        next_step="clone with --keep-failed to look at it; it never gets a NIC",
    )


async def refresh(
    agent: Agent, machine: Machine, key: bytes, snapshot_id: str
) -> tuple[Evidence, tuple[str, ...]]:
    """Give a source, after its snapshot, fresh entropy and its new generation.

    Returns:
        What it reports, and a sentence for each hook and application that failed: the source goes on in any case.
    """
    evidence, failed = await _change("resume", agent, machine, key, snapshot_id)
    return evidence, tuple(f"{found.item} of {machine.name}: {found.reason}" for found in failed)


async def _change(
    call: str, agent: Agent, machine: Machine, key: bytes, snapshot_id: str, **extra: Any
) -> tuple[Evidence, tuple[Finding, ...]]:
    """Return what the guest reports of its identity, and each application's part that failed."""
    began = time.monotonic()
    answer = await agent.call(
        call,
        {
            "key": key.hex(),
            "generation": msgspec.to_builtins(machine.generation),
            "seed": secrets.token_hex(SEED_BYTES),
            "wall_clock_ns": time.time_ns(),
            **extra,
        },
        deadline_s=IDENTIFY_DEADLINE_S,
        repeat=True,
        urgent=call == "identify",  # a source goes on serving
    )
    evidence = Evidence(
        machine=machine.id,
        name=machine.name,
        snapshot=snapshot_id,
        generation=machine.generation,
        items=_reports(answer, agent.name),
        at=now(),
        took_ms=round((time.monotonic() - began) * 1000, 3),
    )
    return evidence, tuple(_find_failures(answer, "cloned" if call == "identify" else "resumed"))


def _find_failures(answer: dict[str, Any], event: str) -> Iterator[Finding]:
    """Yield what hooks, applications and restarted units did not do; agents from before have none of the latter two."""
    for hook in answer.get("hooks", ()):
        if hook["code"]:
            reason = f"it ended with {hook['code']}: {hook['output']}".rstrip(": \n")
            yield Finding(item=f"hook {event}/{hook['name']}", reason=reason)
    for application in answer.get("applications", ()):
        if application["error"]:
            who = f"application {application['name']} (pid {application['pid']})"
            yield Finding(item=who, reason=f"at {event}: {application['error']}")
    for unit in answer.get("restarts", ()):
        if unit["error"]:
            yield Finding(item=f"restart of {unit['unit']}", reason=unit["error"])


def _reports(answer: dict[str, Any], name: str) -> tuple[ItemReport, ...]:
    try:
        return tuple(msgspec.convert(item, ItemReport) for item in answer["items"])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise GuestError(
            f"the agent of {name} reports its identity in a form that is not understood",
            code="bad-report",
            tried="reading the identity report",
            on=name,
            seen=str(error),
            next_step="rebuild the image, so that its agent is of this version",
        ) from error
