"""Every verdict on a report, as a table: what the agent says, what was seen at the snapshot, what the family has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from liveclone.errors import Corrupt
from liveclone.guest.items import load_items
from liveclone.identity import verify
from liveclone.identity.evidence import KEY_BYTES, EvidenceBook
from liveclone.identity.signature import HostKey
from liveclone.model.base import now
from liveclone.model.identity import Cards, Evidence, Finding, Generation, ItemReport, ItemStatus

S = ItemStatus
OLD, NEW, OTHER = "0" * 64, "1" * 64, "2" * 64


def report(
    status: ItemStatus = S.CHANGED,
    after: str = NEW,
    *,
    item: str = "machine_id",
    before: str = OLD,
    required: bool = True,
    error: str = "",
) -> ItemReport:
    return ItemReport(item=item, required=required, status=status, before=before, after=after, error=error)


def seen(status: ItemStatus = S.PRESENT, before: str = OLD, *, required: bool = True) -> ItemReport:
    return ItemReport(item="machine_id", required=required, status=status, before=before)


def evidence(machine: str, *items: ItemReport, findings: tuple[Finding, ...] = ()) -> Evidence:
    return Evidence(
        machine=machine,
        name=f"name-of-{machine}",
        snapshot="s",
        generation=Generation(counter=1, uuid=machine),
        items=items,
        findings=findings,
        at=now(),
    )


def judge(
    reports: Sequence[ItemReport],
    observed: Sequence[ItemReport] = (),
    members: Mapping[str, Evidence] = MappingProxyType({}),
    *,
    gone: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
) -> tuple[Finding, ...]:
    subject = evidence("subject", *reports).replace(snapshot_items=tuple(observed), gone=gone)
    return verify.judge(subject, members, required)


@pytest.mark.parametrize(
    ("given", "observed", "reason", "against"),
    [
        (report(), seen(), "", ""),
        (report(S.CHANGED, OLD), seen(), "its new value is the snapshot's", "snapshot"),
        (report(S.CHANGED, OTHER, before=OTHER), seen(), "its new value is the snapshot's", "snapshot"),
        (report(S.CHANGED, ""), seen(), "the agent gave no digest of the new value", ""),
        (report(S.KEPT, OLD), seen(), "it still has the snapshot's value", "snapshot"),
        (report(S.SHARED, ""), seen(), "it still has the snapshot's value", "snapshot"),
        (report(S.FAILED, "", error="EIO"), seen(), "its reset failed: EIO", ""),
        (report(S.FAILED, ""), seen(), "its reset failed: no reason given", ""),
        (report(S.PENDING, ""), seen(), "its reset had only begun", ""),
        (report(S.PENDING, "", required=False), seen(required=False), "", ""),
        (report(S.ABSENT, ""), seen(), "it was there in the snapshot and is reported absent", ""),
        (report(S.ABSENT, ""), seen(S.ABSENT, ""), "", ""),
        (report(S.CONFIGURED, ""), seen(before=""), "", ""),
        (report(S.CONFIGURED, NEW), None, "", ""),
        (
            report(S.CONFIGURED, NEW),
            seen(),
            "it had a value in the snapshot, and the agent gave no new one to compare",
            "",
        ),
        (report(S.PRESENT, OLD), seen(), "its new value is the snapshot's", "snapshot"),
        (report(S.PRESENT, NEW), seen(), "", ""),
        (report(), None, "", ""),  # an agent that knows more items than the source's did
        (report(S.CHANGED, OLD), None, "its new value is the snapshot's", "snapshot"),
        (None, seen(), "the agent did not report it", ""),
        (None, seen(required=False), "", ""),
        (report(S.KEPT, OLD, required=False), seen(required=False), "", ""),
        (report(S.FAILED, "", required=False), seen(required=False), "", ""),
        # what was required at the snapshot is not made optional by the clone's agent
        (report(S.KEPT, OLD, required=False), seen(), "it still has the snapshot's value", "snapshot"),
        (report(S.CHANGED, OLD, required=False), seen(), "its new value is the snapshot's", "snapshot"),
    ],
)
def test_a_report_against_the_snapshot(
    given: ItemReport | None, observed: ItemReport | None, reason: str, against: str
) -> None:
    found = judge([given] if given else [], [observed] if observed else [])
    expected = (Finding(item="machine_id", reason=reason, against=against),) if reason else ()
    assert found == expected


def test_a_value_that_a_sibling_has_is_found_with_its_name() -> None:
    family = {"a": evidence("a", report(after=OTHER)), "b": evidence("b", report(after=NEW))}
    for gone in ((), ("a", "b")):
        (finding,) = judge([report(after=NEW)], [seen()], family, gone=gone)
        assert finding == Finding(item="machine_id", reason="its new value is that of name-of-b", against="b")
        assert judge([report(after="3" * 64)], [seen()], family, gone=gone) == ()


def test_a_name_that_was_given_to_a_machine_that_is_gone_may_be_given_again() -> None:
    family = {"a": evidence("a", report(item="hostname", after=NEW))}
    assert judge([report(item="hostname", after=NEW)], [], family, gone=("a",)) == ()
    (finding,) = judge([report(item="hostname", after=NEW)], [], family, gone=("b",))
    assert finding.against == "a"


def test_a_value_is_compared_within_its_item_only() -> None:
    other = ItemReport(item="hostname", required=True, status=S.CHANGED, after=NEW)
    assert judge([report(after=NEW)], [seen()], {"a": evidence("a", other)}) == ()


def test_members_without_a_value_are_no_siblings() -> None:
    family = {"a": evidence("a", report(S.ABSENT, ""))}
    assert judge([report()], [seen()], family) == ()


def test_every_item_is_judged() -> None:
    items = [ItemReport(item=name, required=True, status=S.KEPT, before=OLD, after=OLD) for name in "abc"]
    before = [ItemReport(item=name, required=True, status=S.PRESENT, before=OLD) for name in "abcd"]
    assert sorted(finding.item for finding in judge(items, before)) == ["a", "b", "c", "d"]


def test_all_that_a_guest_can_have_is_demanded_of_it() -> None:
    """The host knows the items by itself: an agent that has never heard of one gets no clone verified."""
    assert set(verify.REQUIRED) == {item.name for item in load_items() if item.required}
    optional = [report(S.KEPT, OLD, item=name, required=False) for name in verify.REQUIRED]
    found = {finding.item: finding.reason for finding in judge(optional, required=verify.REQUIRED)}
    assert found == dict.fromkeys(verify.REQUIRED, "it still has the snapshot's value")
    found = {finding.item: finding.reason for finding in judge([], required=verify.REQUIRED)}
    assert found == dict.fromkeys(verify.REQUIRED, "the agent did not report it")


@pytest.mark.parametrize(
    ("late_s", "words"),
    [
        (0.0, ""),
        (0.5, ""),
        (-0.01, ""),
        (-0.2, "behind the host's"),
        (-86400.0, "86400.000 s behind the host's"),
        (3.0, "ahead of the host's"),
        (None, "does not say what time it is"),
    ],
)
def test_a_clock_that_was_set_shows_the_time_between_request_and_reply(
    late_s: float | None, words: str
) -> None:
    at = now()
    asked_ns = int((at.timestamp() - 0.5) * 1e9)
    details = {} if late_s is None else {"realtime_ns": str(asked_ns + int(late_s * 1e9))}
    clock = ItemReport(item="clock", required=True, status=S.CONFIGURED, details=details)
    findings = verify.judge(evidence("a", clock).replace(at=at, took_ms=500.0), {}, ())
    assert [finding.item for finding in findings] == (["clock"] if words else [])
    assert all(words in finding.reason for finding in findings)


MAC, FOREIGN = "02:00:00:00:00:01", "02:00:00:00:00:02"


@pytest.mark.parametrize(
    ("guest", "host", "reasons"),
    [
        ((MAC,), (MAC,), []),
        ((FOREIGN,), (MAC,), [f"the guest shows {FOREIGN}"]),
        ((MAC,), (FOREIGN,), [f"the hypervisor sees {FOREIGN}"]),
        ((MAC,), (MAC, FOREIGN), [f"the hypervisor sees {MAC}, {FOREIGN}"]),
        ((), (), ["the guest shows no NIC", "the hypervisor sees no NIC"]),
    ],
)
def test_guest_and_hypervisor_must_see_the_macs_that_were_given(
    guest: tuple[str, ...], host: tuple[str, ...], reasons: list[str]
) -> None:
    found = verify.judge_cards(Cards(given=(MAC,), guest=guest, host=host))
    assert [(finding.item, finding.reason) for finding in found] == [("network", r) for r in reasons]


@pytest.mark.parametrize(
    ("addresses", "source", "found"),
    [
        (["10.0.0.7/24"], ["10.0.0.6/24"], []),
        (["10.0.0.6/24"], ["10.0.0.6/16"], ["10.0.0.6/24"]),
        ([], ["10.0.0.6/24"], []),
        (["10.0.0.7/24", "10.1.0.6/24"], ["10.1.0.6/24"], ["10.1.0.6/24"]),
    ],
)
def test_a_clone_that_has_given_itself_its_sources_address_is_found(
    addresses: list[str], source: list[str], found: list[str]
) -> None:
    reasons = [finding.reason for finding in verify.judge_addresses(addresses, source)]
    assert reasons == [f"the guest gave itself its source's address, {address}" for address in found]


def whole(machine: str, after: str) -> Evidence:
    """Return evidence in which nothing is missing and only machine_id may be wrong."""
    others = [
        report(after=f"{machine}'s {name}", item=name) for name in verify.REQUIRED if name != "machine_id"
    ]
    return evidence(machine, report(after=after), *others)


def test_the_book_compares_with_all_members_and_records_the_verdict(tmp_path: Path) -> None:
    book = EvidenceBook(tmp_path, tmp_path / "lock", HostKey(tmp_path / "host.key", tmp_path / "key-lock"))
    key = book.make_key()
    assert len(key) == KEY_BYTES and book.key() == key
    book.record(evidence("source", report(after=OTHER)))
    first = book.judge_and_record(whole("a", NEW), (seen(),), ("source",))
    second = book.judge_and_record(whole("b", NEW), (seen(),), ("source",))
    assert first.verified and first.compared_with == ("source",) and first.gone == ()
    assert not second.verified and second.compared_with == ("a", "source") and second.gone == ("a",)
    assert second.snapshot_items == (seen(),)
    assert book.load("b") == second
    assert book.load("nobody") is None
    assert set(book.members()) == {"source", "a", "b"}
    # Asked again after a lost reply, a machine is not its own sibling.
    assert book.judge_and_record(whole("a", NEW), (seen(),), ()).findings == (
        Finding(item="machine_id", reason="its new value is that of name-of-b", against="b"),
    )
    # Nor may it have what the source has since its snapshot.
    assert book.judge_and_record(whole("c", OTHER), (seen(),), ()).findings == (
        Finding(item="machine_id", reason="its new value is that of name-of-source", against="source"),
    )


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    book = EvidenceBook(tmp_path, tmp_path / "lock", HostKey(tmp_path / "host.key", tmp_path / "key-lock"))
    for content in (None, b"", bytes(KEY_BYTES - 1), bytes(KEY_BYTES + 1)):
        if content is not None:
            (tmp_path / "key").write_bytes(content)
        with pytest.raises(Corrupt) as caught:
            book.key()
        assert caught.value.code == "bad-key"
