"""Check a proof from itself alone: signatures, completeness, and whether its verdict follows from its digests. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping

import msgspec

from ..errors import Corrupt
from ..model.identity import Evidence, ItemStatus
from ..model.proof import Check, Named, Proof, Record
from . import signature, verify


def check(proof: Proof, public: bytes, on: str) -> Check:
    """Return what holds of a proof, under the public key (32 bytes) of the host that is trusted.

    Raises:
        Corrupt: what it holds is no evidence. `on` names the file.
    """
    subject = _read(proof.subject, on)
    given = [(record, _read(record, on)) for record in proof.members]
    problems = [*_check_signature(proof.subject, subject, public)]
    members: dict[str, Evidence] = {}
    for record, evidence in given:
        if evidence.machine in subject.compared_with:
            problems += _check_signature(record, evidence, public)
            members[evidence.machine] = evidence
            if evidence.snapshot != subject.snapshot:
                problems.append(f"the record of {evidence.name} is of another snapshot's family")
    problems += [
        f"the record of {machine} is missing, with which {subject.name} was compared"
        for machine in subject.compared_with
        if machine not in members
    ]
    is_clone = bool(subject.snapshot_items)
    if is_clone:
        problems += _judge_again(subject, members)
    return Check(
        subject=_name(subject),
        snapshot=subject.snapshot,
        generation=subject.generation.uuid,
        key=base64.b64encode(public).decode(),
        items=tuple(item.item for item in subject.items if item.required and _is_new(item.status)),
        compared_with=tuple(_name(member) for member in members.values()),
        is_clone=is_clone,
        findings=subject.findings,
        problems=tuple(problems),
        holds=not problems and not subject.findings,
    )


def _read(record: Record, on: str) -> Evidence:
    try:
        return msgspec.convert(record.evidence, Evidence)
    except msgspec.ValidationError as error:
        raise Corrupt(
            f"{on} holds no evidence",
            code="no-evidence",
            tried="reading evidence",
            on=on,
            seen=str(error),
            next_step="make it anew: liveclone show CLONE --evidence",
        ) from error


def _check_signature(record: Record, evidence: Evidence, public: bytes) -> Iterable[str]:
    if signature.fits(record.evidence, record.signature, public):
        return
    if _key_of(record) != public:
        yield f"the record of {evidence.name} is signed with another key: {record.signature.key}"
    else:
        yield f"the record of {evidence.name} is not what was signed"


def _key_of(record: Record) -> bytes:
    try:
        return base64.b64decode(record.signature.key, validate=True)
    except binascii.Error:
        return b""


def _judge_again(subject: Evidence, members: Mapping[str, Evidence]) -> Iterable[str]:
    """Reach the verdict from what is in the evidence, and compare it with the one that was recorded."""
    found = list(verify.judge(subject, members))
    reports = (*subject.items, *subject.snapshot_items)
    items = {verify.NETWORK, *verify.REQUIRED, *(report.item for report in reports)}
    if subject.cards is not None:
        found += verify.judge_cards(subject.cards)
    elif not subject.findings:
        yield f"the NICs of {subject.name} have not been judged"
    for finding in found:
        if finding not in subject.findings:
            yield f"{finding.item}: {finding.reason}; the record does not say so"
    for finding in subject.findings:
        # What hooks and applications said is of no item, and no digest shows it.
        if finding not in found and finding.item in items:
            yield f"{finding.item}: {finding.reason}; that does not follow from the digests"


def _is_new(status: ItemStatus) -> bool:
    return status in (ItemStatus.CHANGED, ItemStatus.CONFIGURED)


def _name(evidence: Evidence) -> Named:
    return Named(machine=evidence.machine, name=evidence.name, at=evidence.at)
