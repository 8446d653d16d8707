"""Evidence that was signed: nothing in it can be changed, left out or made up unnoticed."""

from __future__ import annotations

import base64
import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from liveclone.errors import Corrupt, NotFound, Refused
from liveclone.identity import proof, signature, verify
from liveclone.identity.evidence import EvidenceBook
from liveclone.identity.signature import HostKey
from liveclone.model import base
from liveclone.model.base import now
from liveclone.model.identity import Cards, Evidence, Finding, Generation, ItemReport, ItemStatus
from liveclone.model.proof import Check, Proof

MAC = "02:00:00:00:00:01"


def make_key(folder: Path, name: str = "host") -> HostKey:
    return HostKey(folder / f"{name}.key", folder / f"{name}.lock")


def evidence(machine: str, **changes: Any) -> Evidence:
    items = [
        ItemReport(item=name, required=True, status=ItemStatus.CHANGED, after=f"{name} of {machine}")
        for name in verify.REQUIRED
    ]
    plain = Evidence(
        machine=machine,
        name=f"name-of-{machine}",
        snapshot="s",
        generation=Generation(counter=1, uuid=machine),
        items=tuple(items),
        at=now(),
        took_ms=12.0,
    )
    made: Evidence = plain.replace(**changes)
    return made


OBSERVED = tuple(
    ItemReport(item=name, required=True, status=ItemStatus.PRESENT, before=f"{name} of the snapshot")
    for name in verify.REQUIRED
)


class Family:
    """A source and the clones a and b, in one book."""

    def __init__(self, folder: Path) -> None:
        self.key = make_key(folder)
        self.book = EvidenceBook(folder, folder / "lock", self.key)
        self.book.record(evidence("source"))
        for name in ("a", "b"):
            self.add(evidence(name))

    def add(self, reported: Evidence) -> Evidence:
        cards = Cards(given=(MAC,), guest=(MAC,), host=(MAC,))
        judged: Evidence = self.book.judge_and_record(reported, OBSERVED, ("source", "a", "b"))
        judged = judged.replace(cards=cards)
        self.book.record(judged)
        return judged

    def export(self, machine: str) -> Proof:
        exported = self.book.export(machine)
        assert exported is not None
        return exported

    def check(self, exported: Proof) -> Check:
        """Check it as a file."""
        return proof.check(
            base.decode(base.encode(exported), Proof, "a file"), self.key.public_raw(), "a file"
        )

    def change(self, machine: str, change: Callable[[dict[str, Any]], object], *, sign: bool) -> Check:
        """Change a machine's record, sign it anew or not, and check the proof."""
        plain = copy.deepcopy(msgspec.to_builtins(self.export(machine)))
        change(plain)
        if sign:
            for record in (plain["subject"], *plain["members"]):
                record["signature"] = msgspec.to_builtins(self.key.sign(record["evidence"]))
        return self.check(msgspec.convert(plain, Proof))


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


def test_a_proof_holds_and_says_what_of_whom(family: Family) -> None:
    check = family.check(family.export("b"))
    assert check.holds and check.is_clone
    assert (check.problems, check.findings) == ((), ())
    assert (check.subject.machine, check.snapshot) == ("b", "s")
    assert {one.name for one in check.compared_with} == {"name-of-source", "name-of-a"}
    assert set(check.items) == set(verify.REQUIRED)


def test_a_source_is_renewed_and_not_judged(family: Family) -> None:
    check = family.check(family.export("source"))
    assert check.holds and not check.is_clone and check.compared_with == ()


def test_nobody_else_is_in_the_book(family: Family) -> None:
    assert family.book.export("nobody") is None


def test_a_clone_that_was_refused_is_refused_by_the_check_too(family: Family) -> None:
    family.add(evidence("c", items=evidence("a").items))
    check = family.check(family.export("c"))
    assert not check.holds
    assert check.problems == (), "the record is what it was"
    assert {finding.against for finding in check.findings} == {"a"}


def every_value(record: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return where each plain value of a record lies."""
    found: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                walk(inner)
            else:
                found.append((value, key))

    walk(record)
    return found


def other_than(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    return value + ("x" if isinstance(value, str) else 1)


def test_no_value_can_be_changed(family: Family) -> None:
    plain = msgspec.to_builtins(family.export("b"))
    for which in (plain["subject"], *plain["members"]):
        for place, key in every_value(which["evidence"]):
            old = place[key]
            place[key] = other_than(old)
            try:
                check = family.check(msgspec.convert(plain, Proof))
            except Corrupt:
                pass  # a time or a status that is none
            else:
                assert not check.holds, (key, old)
            place[key] = old
    assert family.check(msgspec.convert(plain, Proof)).holds


def test_a_record_that_is_missing_or_another_familys_is_missed(family: Family) -> None:
    def forget(plain: dict[str, Any]) -> None:
        plain["members"] = [one for one in plain["members"] if one["evidence"]["machine"] != "a"]

    assert family.change("b", forget, sign=False).problems == (
        "the record of a is missing, with which name-of-b was compared",
    )

    def move(plain: dict[str, Any]) -> None:
        plain["members"][0]["evidence"]["snapshot"] = "another"

    (problem,) = family.change("b", move, sign=True).problems
    assert "another snapshot's family" in problem


def set_after(value: str) -> Callable[[dict[str, Any]], object]:
    return lambda plain: plain["subject"]["evidence"]["items"][0].update(after=value)


NAME = verify.REQUIRED[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_after(f"{NAME} of a"), "its new value is that of name-of-a; the record does not say so"),
        (set_after(f"{NAME} of the snapshot"), "its new value is the snapshot's; the record does not say so"),
        (lambda plain: plain["subject"]["evidence"]["items"].pop(0), "the agent did not report it"),
        (lambda plain: plain["subject"]["evidence"].update(cards=None), "have not been judged"),
        (lambda plain: plain["subject"]["evidence"]["cards"].update(host=["x"]), "the hypervisor sees x"),
        (
            lambda plain: plain["subject"]["evidence"].update(
                findings=[{"item": "rng", "reason": "made up"}]
            ),
            "rng: made up; that does not follow from the digests",
        ),
    ],
)
def test_a_verdict_that_does_not_follow_is_found_whoever_signed_it(
    family: Family, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    check = family.change("b", change, sign=True)
    assert not check.holds
    assert any(words in problem for problem in check.problems), check.problems


def test_what_an_application_said_need_not_follow_from_digests(family: Family) -> None:
    hook = Finding(item="hook cloned/10-app", reason="it ended with 3")
    family.add(evidence("c", findings=(hook,)))
    check = family.check(family.export("c"))
    assert (check.problems, check.findings, check.holds) == ((), (hook,), False)


def test_another_hosts_signature_is_none_whatever_key_it_names(family: Family, tmp_path: Path) -> None:
    other = make_key(tmp_path, "other")
    exported = family.export("b")
    foreign = exported.replace(
        subject=exported.subject.replace(signature=other.sign(exported.subject.evidence))
    )
    (problem,) = family.check(foreign).problems
    assert "signed with another key" in problem
    named = foreign.subject.signature.replace(key=exported.subject.signature.key)
    (problem,) = family.check(foreign.replace(subject=foreign.subject.replace(signature=named))).problems
    assert "not what was signed" in problem


def test_what_is_no_evidence_is_refused(family: Family) -> None:
    def empty(plain: dict[str, Any]) -> None:
        plain["subject"]["evidence"] = {}

    with pytest.raises(Corrupt) as caught:
        family.change("b", empty, sign=True)
    assert caught.value.code == "no-evidence"


# The key


def test_the_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    keys = [make_key(tmp_path) for _ in range(8)]
    threads = [threading.Thread(target=key.load) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({key.public() for key in keys}) == 1
    assert (tmp_path / "host.key").stat().st_mode & 0o777 == 0o600
    assert make_key(tmp_path).public_raw() == keys[0].public_raw()


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    key = make_key(tmp_path)
    (tmp_path / "host.key").write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        key.sign({})
    assert caught.value.code == "bad-host-key"
    assert (tmp_path / "host.key").read_bytes() == content


def test_a_public_key_is_read_from_its_file(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    file = tmp_path / "public"
    file.write_bytes(key.public())
    assert signature.load_public(file) == key.public_raw()
    for content in (b"", base64.b64encode(key.public_raw())):
        file.write_bytes(content)
        with pytest.raises(Refused) as refused:
            signature.load_public(file)
        assert refused.value.code == "bad-key-file"
    with pytest.raises(NotFound):
        signature.load_public(tmp_path / "none")


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ({"b": 1, "a": [1.0, 1.5, 0.001, True, None]}, b'{"a":[1,1.5,0.001,true,null],"b":1}'),
        ({"é\n\x1f\x7f/": '"\\'}, '{"é\\n\\u001f\x7f/":"\\"\\\\"}'.encode()),
    ],
)
def test_the_canonical_form(value: Any, canonical: bytes) -> None:
    assert signature.render_canonical(value) == canonical
    again = json.loads(json.dumps(value, indent=7))
    assert signature.render_canonical(again) == canonical
