"""What is kept of a clone's evidence, and what its owner reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liveclone.identity import proof, signature
from liveclone.model import base
from liveclone.model.identity import Cards, Finding, ItemReport, ItemStatus
from liveclone.model.proof import Proof
from liveclone_nova import conf, evidence, identity
from liveclone_nova.conf import CONF
from liveclone_nova.seal import Part

from .states import describe, make_evidence, make_identity


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    conf.register()
    CONF.set_override("instances_path", str(tmp_path))
    made = conf.make_folder("states") / "state"
    made.mkdir()
    yield made
    CONF.clear_override("instances_path")


def test_a_book_has_the_source_in_it_once(folder: Path) -> None:
    book = evidence.open_book(folder, make_identity())
    assert list(book.members()) == ["source"]
    path = folder / "evidence" / "source.json"
    before = path.stat().st_ino
    evidence.open_book(folder, make_identity())
    assert path.stat().st_ino == before


def test_a_proof_in_the_servers_folder_can_be_checked_elsewhere(folder: Path, tmp_path: Path) -> None:
    known = make_identity()
    book = evidence.open_book(folder, known)
    judged = book.judge_and_record(make_evidence("clone"), known.items, ["clone"])
    assert judged.compared_with == ("source",)
    evidence.keep(book, tmp_path, judged)
    kept = base.decode((tmp_path / "evidence.json").read_bytes(), Proof, "it")
    public = signature.HostKey(tmp_path / "liveclone" / "host.key", tmp_path / "lock").public_raw()
    check = proof.check(kept, public, "it")
    assert (check.subject.machine, [one.machine for one in check.compared_with]) == ("clone", ["source"])
    assert check.problems == ()
    assert check.findings  # of such a report there is much to say
    assert not check.holds


def test_a_sibling_with_the_same_value_is_found(folder: Path) -> None:
    known = make_identity()
    book = evidence.open_book(folder, known)
    book.judge_and_record(make_evidence("first"), known.items, ["first"])
    judged = book.judge_and_record(make_evidence("second"), known.items, ["first", "second"])
    assert (
        Finding(item="hostname", reason="its new value is that of first", against="first") in judged.findings
    )


def test_what_the_owner_reads_is_a_sentence() -> None:
    verified = make_evidence("clone", compared_with=("source", "sibling"))
    assert evidence.summarize(verified) == "Success: verified; unlike in the snapshot and 2 others: hostname"
    cards = Cards(given=("m",), guest=("m",), host=("m",))
    network = ItemReport(item="network", required=True, status=ItemStatus.CONFIGURED)
    connected = verified.replace(items=(*verified.items, network), cards=cards)
    assert "verified and its cards" in evidence.summarize(connected)
    bad = verified.replace(findings=(Finding(item="machine_id", reason="it still has the snapshot's value"),))
    assert evidence.summarize(bad) == "Error: not verified: machine_id: it still has the snapshot's value"


class TestWithoutIdentity:
    """No agent answered in the source."""

    part = Part(size_bytes=1, digest="f")

    def find(self, *, allowed: bool, **changes: Any) -> list[str]:
        conf.register()
        CONF.set_override("unverified_clones", allowed, group="liveclone")
        try:
            return identity.find_problems(describe(self.part, self.part, **changes))
        finally:
            CONF.clear_override("unverified_clones", group="liveclone")

    def test_it_is_refused_and_why_is_said(self) -> None:
        (problem,) = self.find(allowed=False, no_identity="the guest has no port")
        assert "cannot be verified (the guest has no port)" in problem
        assert "[liveclone]/unverified_clones is off" in problem

    def test_the_operator_may_allow_it(self) -> None:
        assert self.find(allowed=True) == []

    def test_with_one_there_is_nothing_to_allow(self) -> None:
        assert self.find(allowed=False, identity=make_identity()) == []
