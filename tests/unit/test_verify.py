"""Every verdict on a report, as a table: what the agent says, what was seen at the snapshot, what the family has."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone.errors import Corrupt
from liveclone.identity import verify
from liveclone.identity.evidence import KEY_BYTES, EvidenceBook
from liveclone.model.base import now
from liveclone.model.identity import Evidence, Finding, Generation, ItemReport, ItemStatus

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
    found = verify.judge([given] if given else [], [observed] if observed else [], {}, ())
    expected = (Finding(item="machine_id", reason=reason, against=against),) if reason else ()
    assert found == expected


def test_a_value_that_a_sibling_has_is_found_with_its_name() -> None:
    family = {"a": evidence("a", report(after=OTHER)), "b": evidence("b", report(after=NEW))}
    for existing in ({"a", "b"}, set[str]()):
        (finding,) = verify.judge([report(after=NEW)], [seen()], family, existing)
        assert finding == Finding(item="machine_id", reason="its new value is that of name-of-b", against="b")
        assert verify.judge([report(after="3" * 64)], [seen()], family, existing) == ()


@pytest.mark.parametrize("item", ["hostname", "network"])
def test_a_name_that_was_given_to_a_machine_that_is_gone_may_be_given_again(item: str) -> None:
    family = {"a": evidence("a", report(item=item, after=NEW))}
    assert verify.judge([report(item=item, after=NEW)], [], family, {"b"}) == ()
    (finding,) = verify.judge([report(item=item, after=NEW)], [], family, {"a"})
    assert finding.against == "a"


def test_a_value_is_compared_within_its_item_only() -> None:
    other = ItemReport(item="hostname", required=True, status=S.CHANGED, after=NEW)
    assert verify.judge([report(after=NEW)], [seen()], {"a": evidence("a", other)}, {"a"}) == ()


def test_members_without_a_value_are_no_siblings() -> None:
    family = {"a": evidence("a", report(S.ABSENT, ""))}
    assert verify.judge([report()], [seen()], family, {"a"}) == ()


def test_every_item_is_judged() -> None:
    items = [ItemReport(item=name, required=True, status=S.KEPT, before=OLD, after=OLD) for name in "abc"]
    before = [ItemReport(item=name, required=True, status=S.PRESENT, before=OLD) for name in "abcd"]
    assert sorted(finding.item for finding in verify.judge(items, before, {}, ())) == ["a", "b", "c", "d"]


def test_the_book_compares_with_all_members_and_records_the_verdict(tmp_path: Path) -> None:
    book = EvidenceBook(tmp_path, tmp_path / "lock")
    key = book.make_key()
    assert len(key) == KEY_BYTES and book.key() == key
    book.record(evidence("source", report(after=OTHER)))
    first = book.judge_and_record(evidence("a", report(after=NEW)), (seen(),), ())
    second = book.judge_and_record(evidence("b", report(after=NEW)), (seen(),), ())
    assert first.verified and first.compared_with == ("source",)
    assert not second.verified and second.compared_with == ("a", "source")
    assert book.load("b") == second
    assert book.load("nobody") is None
    assert set(book.members()) == {"source", "a", "b"}
    # Asked again after a lost reply, a machine is not its own sibling.
    assert book.judge_and_record(evidence("a", report(after=NEW)), (seen(),), ()).findings == (
        Finding(item="machine_id", reason="its new value is that of name-of-b", against="b"),
    )


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    book = EvidenceBook(tmp_path, tmp_path / "lock")
    for content in (None, b"", bytes(KEY_BYTES - 1), bytes(KEY_BYTES + 1)):
        if content is not None:
            (tmp_path / "key").write_bytes(content)
        with pytest.raises(Corrupt) as caught:
            book.key()
        assert caught.value.code == "bad-key"
