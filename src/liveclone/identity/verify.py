"""Judge whether a machine is really another than its snapshot and its siblings. Pure: values in, findings out.

An agent only reports; the host decides. A required item must be there, must have been reset without an error, and its
digest must differ from the one in the snapshot and from every other member's: the source's after the
snapshot, and each clone's so far. Digests are keyed per snapshot, so equal digests mean equal values.

A lie is caught where it can be: "changed" with the old digest, a digest that a sibling has, an item that was left out or
called optional, a clock that was set and shows another time, a MAC that the hypervisor sees and that was not given.

All that a verdict stands on is in the evidence itself, so that it can be reached again later, from the records alone.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

from ..model.identity import Cards, Evidence, Finding, ItemReport, ItemStatus

# What a clone's agent has to report whatever it says itself: one that lacks an item is too old for a verdict.
REQUIRED = (
    "boot_id",
    "clock",
    "cloud_init",
    "connections",
    "dhcp",
    "hibernation",
    "hostname",
    "interface_names",
    "ipv6_secrets",
    "login_sessions",
    "machine_id",
    "network_programs",
    "random_seed",
    "rng",
    "ssh_host_keys",
)

# A clone has no NIC when its agent reports, so this item is judged by `judge_cards`.
NETWORK = "network"

# An item may carry this status and still have a value that has to differ.
_RESET = (ItemStatus.CHANGED, ItemStatus.PRESENT)

# Values that the host itself gives out: unique among the machines there are, free again when one is removed. All
# other values are random, and must not even be those of a machine that is long gone.
_GIVEN = ("hostname",)

# The clock is set to the host's time at some instant between request and reply; both are measured a moment beside it.
_EARLY_S = 0.05
_LATE_S = 1.0


def judge(
    evidence: Evidence, members: Mapping[str, Evidence], required: Iterable[str] = REQUIRED
) -> tuple[Finding, ...]:
    """Return all that speaks against a clone; nothing if it is a machine of its own. Its NICs are judged apart.

    Args:
        evidence: what its agent reported after the reset, and what it is compared with.
        members: the evidence of `evidence.compared_with`, by machine id.
        required: items that must be reported in any case.
    """
    demanded = set(required)
    given = {report.item: report for report in evidence.items}
    before = {report.item: report for report in evidence.snapshot_items}
    demanded |= {name for name, observed in before.items() if observed.required}
    findings = [
        Finding(item=name, reason="the agent did not report it") for name in sorted(demanded - given.keys())
    ]
    for report in given.values():
        if report.item == NETWORK:
            continue
        compared = {
            key: value
            for key, value in members.items()
            if report.item not in _GIVEN or key not in evidence.gone
        }
        is_required = report.required or report.item in demanded
        findings += _judge_item(report, before.get(report.item), compared, is_required)
    if "clock" in given:
        findings += _judge_clock(given["clock"], evidence)
    return tuple(findings)


def judge_cards(cards: Cards) -> Iterable[Finding]:
    """Yield what speaks against a machine's NICs: guest and hypervisor must see the MACs that were given, no others."""
    for who, seen in (("guest shows", cards.guest), ("hypervisor sees", cards.host)):
        if seen != cards.given:
            yield Finding(item=NETWORK, reason=f"the {who} {', '.join(seen) or 'no NIC'}")


def judge_addresses(addresses: Iterable[str], source: Iterable[str]) -> Iterable[Finding]:
    """Yield what speaks against the addresses that a guest has set by itself: its source still has its own."""
    taken = {address.partition("/")[0] for address in source}
    for address in addresses:
        if address.partition("/")[0] in taken:
            yield Finding(item=NETWORK, reason=f"the guest gave itself its source's address, {address}")


def _judge_item(
    report: ItemReport, before: ItemReport | None, members: Mapping[str, Evidence], required: bool
) -> Iterable[Finding]:
    def found(reason: str, against: str = "") -> Finding:
        return Finding(item=report.item, reason=reason, against=against)

    if required and report.status is ItemStatus.FAILED:
        yield found(f"its reset failed: {report.error or 'no reason given'}")
        return
    if required and report.status in (ItemStatus.KEPT, ItemStatus.SHARED):
        yield found("it still has the snapshot's value", "snapshot")
        return
    if required and report.status is ItemStatus.PENDING:
        yield found("its reset had only begun")
        return
    if required and report.status is ItemStatus.ABSENT and before and before.status is ItemStatus.PRESENT:
        yield found("it was there in the snapshot and is reported absent")
        return
    if required and report.status is ItemStatus.CONFIGURED and before and before.before:
        yield found("it had a value in the snapshot, and the agent gave no new one to compare")
        return
    if report.status not in _RESET:
        return
    if required and not report.after:
        yield found("the agent gave no digest of the new value")
        return
    old = before.before if before else ""
    if required and report.after and report.after in (old, report.before):
        yield found("its new value is the snapshot's", "snapshot")
    for member_id, evidence in members.items():
        for other in evidence.items:
            if other.item == report.item and required and other.after and other.after == report.after:
                yield found(f"its new value is that of {evidence.name}", member_id)


def _judge_clock(report: ItemReport, evidence: Evidence) -> Iterable[Finding]:
    """The time that the guest shows must lie between request and reply, as the host measured them."""
    if report.status is not ItemStatus.CONFIGURED:
        return
    shown = report.details.get("realtime_ns", "")
    if not shown.isdecimal():
        yield Finding(item=report.item, reason="the agent does not say what time it is")
        return
    asked = evidence.at - datetime.timedelta(milliseconds=evidence.took_ms)
    behind = asked.timestamp() - int(shown) / 1e9
    ahead = int(shown) / 1e9 - evidence.at.timestamp()
    if behind > _EARLY_S:
        yield Finding(item=report.item, reason=f"it is {behind:.3f} s behind the host's, though it was set")
    elif ahead > _LATE_S:
        yield Finding(item=report.item, reason=f"it is {ahead:.3f} s ahead of the host's, though it was set")
