"""What people and programs get to see."""

from __future__ import annotations

import datetime
import json

import pytest

from liveclone.cli import output
from liveclone.errors import GuestError
from liveclone.model.base import now


def test_an_error_is_one_block() -> None:
    error = GuestError(
        "web did not answer",
        code="silent",
        tried="agent ping",
        on="web",
        seen="nothing for 5 s",
        source_state="running",
        next_step="liveclone console web",
    )
    assert output.render_error(error.fields()) == (
        "liveclone: web did not answer\n"
        "  tried   agent ping\n"
        "  on      web\n"
        "  seen    nothing for 5 s\n"
        "  source  running\n"
        "  next    liveclone console web\n"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert output.render_error(GuestError("it failed").fields()) == "liveclone: it failed\n"


def test_an_error_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(GuestError("it\nfailed", tried="x").fields(), as_json=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": "guest", "kind": "GuestError", "message": "it\nfailed", "tried": "x"}
    assert err.count("\n") == 1


def test_what_a_guest_says_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "a\x1b[2Jb\x9bc\rd\x00e\u202ef"
    output.print_table(["name", "seen"], [(nasty, "[bold]x[/bold]")])
    output.print_facts([("seen", nasty)])
    output.print_line(nasty)
    output.print_error(GuestError(nasty, seen=nasty).fields(), as_json=False)
    out, err = capsys.readouterr()
    assert set("\x1b\x9b\r\x00\u202e") & set(out + err) == set()
    assert "[bold]x[/bold]" in out


def test_a_table_in_a_pipe_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name", "what"], [("a", "x" * 300), ("longer", "")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME    WHAT", "a       " + "x" * 300, "longer"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (300, "5 min"), (7300, "2 h"), (400000, "4 days"), (-5, "0 s")],
)
def test_ages(seconds: int, text: str) -> None:
    assert output.render_age(now() - datetime.timedelta(seconds=seconds)) == text
