"""The journal: there exactly while an operation is under way, its facts piling up, readable by whoever comes next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liveclone.errors import Corrupt
from liveclone.model.machine import ProcessRef
from liveclone.store.journal import Entry, Journal


def test_it_is_there_exactly_while_an_operation_is_under_way(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() is None
    journal.begin("snapshot", name="warm")
    assert Journal(tmp_path).read() == Entry(operation="snapshot", step="begun", facts={"name": "warm"})
    journal.end()
    assert Journal(tmp_path).read() is None
    assert list(tmp_path.iterdir()) == []
    journal.end()


def test_facts_pile_up_and_the_last_step_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin("snapshot", name="warm", method="handover")
    journal.note("successor", successor=ProcessRef(pid=7, start_ticks=8, boot_id="b"), path=tmp_path.name)
    journal.note("pausing")
    journal.note("committing", method="other")
    entry = Journal(tmp_path).read()
    assert entry is not None
    assert (entry.operation, entry.step) == ("snapshot", "committing")
    assert entry.facts == {
        "name": "warm",
        "method": "other",
        "successor": {"pid": 7, "start_ticks": 8, "boot_id": "b"},
        "path": tmp_path.name,
    }
    assert ProcessRef(**entry.facts["successor"]).pid == 7


def test_a_new_operation_knows_nothing_of_the_last_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin("snapshot", name="warm")
    journal.end()
    journal.begin("remove")
    entry = journal.read()
    assert entry is not None and entry.facts == {}


def test_a_note_needs_a_beginning(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Journal(tmp_path).note("pausing")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_meets_the_old_note_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.begin("snapshot")
    journal.note("pausing")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            journal.note("committing")
    entry = Journal(tmp_path).read()
    assert entry is not None and entry.step == "pausing"


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "operation.json"
    for content in ("", "{", "[]", json.dumps({"step": "begun"})):
        path.write_text(content)
        with pytest.raises(Corrupt) as caught:
            Journal(tmp_path).read()
        assert caught.value.on == str(path)
