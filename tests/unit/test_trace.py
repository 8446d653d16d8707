"""Named points: they are no danger to whoever passes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone import trace


def test_points_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace"
    monkeypatch.setattr(trace, "_trace_path", str(path))
    trace.at("one.begun")
    trace.at("one.done")
    assert path.read_text() == "one.begun\none.done\n"


def test_a_process_outlives_whoever_wanted_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_trace_path", str(tmp_path / "gone" / "trace"))
    trace.at("one.begun")
