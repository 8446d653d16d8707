"""Judge whether a machine is really another than its snapshot and its siblings. Pure: values in, findings out.

An agent only reports; the host decides. A required item must be there, must have been reset without an error, and its
digest must differ from the one in the snapshot and from every other member's: the source's after the
snapshot, and each clone's so far. Digests are keyed per snapshot, so equal digests mean equal values.

A lie is caught where it can be: "changed" with the old digest, a digest that a sibling has, an item that was left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from ..model.identity import Evidence, Finding, ItemReport, ItemStatus

# An item may carry this status and still have a value that has to differ.
_RESET = (ItemStatus.CHANGED, ItemStatus.PRESENT)

# Values that the host itself gives out: unique among the machines there are, free again when one is removed. All
# other values are random, and must not even be those of a machine that is long gone.
_GIVEN = ("hostname", "network")


def judge(
    reports: Iterable[ItemReport],
    snapshot_items: Iterable[ItemReport],
    members: Mapping[str, Evidence],
    existing: Container[str],
) -> tuple[Finding, ...]:
    """Return all that speaks against a clone; nothing if it is a machine of its own.

    Args:
        reports: what its agent reported after the reset.
        snapshot_items: what the source's agent observed just before the capture.
        members: evidence of the source and of the siblings, by machine id.
        existing: ids of the machines that exist now.
    """
    given = {report.item: report for report in reports}
    before = {report.item: report for report in snapshot_items}
    findings: list[Finding] = []
    for name, observed in before.items():
        if observed.required and name not in given:
            findings.append(Finding(item=name, reason="the agent did not report it"))
    for report in given.values():
        compared = {
            key: value for key, value in members.items() if report.item not in _GIVEN or key in existing
        }
        findings += _judge_item(report, before.get(report.item), compared)
    return tuple(findings)


def _judge_item(
    report: ItemReport, before: ItemReport | None, members: Mapping[str, Evidence]
) -> Iterable[Finding]:
    def found(reason: str, against: str = "") -> Finding:
        return Finding(item=report.item, reason=reason, against=against)

    required = report.required or (before is not None and before.required)
    if required and report.status is ItemStatus.FAILED:
        yield found(f"its reset failed: {report.error or 'no reason given'}")
        return
    if required and report.status in (ItemStatus.KEPT, ItemStatus.SHARED):
        yield found("it still has the snapshot's value", "snapshot")
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
