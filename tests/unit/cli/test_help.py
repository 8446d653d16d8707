"""The command's outside: every verb has a help, it is quick, and docs/cli.md says the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import liveclone
from liveclone import errors
from liveclone.cli import exits
from liveclone.cli.main import ORDER, SETTINGS

from .conftest import COMMAND, SOURCE, build_command, invoke

DOCS = Path(__file__).resolve().parents[3] / "docs" / "cli.md"
GROUPS = ("snapshot", "pool", "image", "agent", "libvirt")
LIMIT_S = 0.2


def verbs(group: Any = None, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every verb with its words, and its command."""
    root: Any = group or build_command()
    for name, command in root.commands.items():
        if command.hidden:
            continue
        yield (*before, name), command
        if hasattr(command, "commands"):
            yield from verbs(command, (*before, name))


VERBS = dict(verbs())


def help_of(*words: str) -> str:
    ended = invoke([*words, "--help"])
    assert ended.returncode == 0
    return ended.stdout.decode()


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_explains_itself(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    assert text.startswith(f"Usage: liveclone {' '.join(words)} ")
    if words[-1] not in GROUPS:
        assert "--quiet" in text
        assert ("--json" in text) is (words[0] not in ("exec", "console", "logs"))
    for parameter in VERBS[words].params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{parameter.name} is not explained"


def test_the_first_lines_are_short_enough_for_the_list() -> None:
    text = help_of()
    for (*_, name), _command in ((w, c) for w, c in VERBS.items() if len(w) == 1):
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert not line.endswith("..."), line


def test_every_verb_has_its_place() -> None:
    assert {words[0] for words in VERBS} == set(ORDER)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("ls", "list"), ("ps", "list"), ("rm", "remove"), ("inspect", "show")],
)
def test_habits_of_other_tools_work(alias: str, name: str) -> None:
    assert help_of(alias).replace(f"liveclone {alias}", f"liveclone {name}") == help_of(name)


@pytest.mark.parametrize("words", [(), ("-h",), ("snapshot",), ("snapshot", "-h"), ("image",), ("run", "-h")])
def test_help_can_be_had_in_other_ways(words: tuple[str, ...]) -> None:
    ended = invoke(words)
    assert b"Usage: liveclone" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "words",
    [("no-such-verb",), ("run",), ("run", "--no-such-option"), ("clone", "x", "-n", "many"), ("exec", "web")],
)
def test_a_command_line_that_is_not_understood(words: tuple[str, ...]) -> None:
    ended = invoke(words)
    assert ended.returncode == exits.USAGE
    assert b"Usage: liveclone" in ended.stderr
    assert ended.stdout == b""


def test_a_typing_error_is_guessed() -> None:
    assert b"Did you mean 'snapshot'" in invoke(["snapshto"]).stderr


def test_the_version() -> None:
    for words in (["--version"], ["version"]):
        assert invoke(words).stdout.decode() == f"liveclone {liveclone.__version__}\n"


@pytest.mark.parametrize(
    "words", [("--version",), ("--help",), *((*w, "--help") for w in VERBS)], ids=" ".join
)
def test_help_takes_a_moment_only(words: tuple[str, ...]) -> None:
    """Processor time, which what else runs here disturbs little; since it still does, the least of several counts."""
    assert any(_processor_time(words) < LIMIT_S for _ in range(13))


def _processor_time(words: tuple[str, ...]) -> float:
    before = os.times()
    subprocess.run(
        [*COMMAND, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_nothing_heavy_is_imported_for_a_help() -> None:
    heavy = ("asyncio", "msgspec", "pydantic", "numpy", "rich", "pyroute2", "qemu", "liveclone.engine")
    program = (
        "import sys; from liveclone.cli.main import build_app; build_app(completion=False)(['run', '--help'],"
        " standalone_mode=False); print(sorted(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    ).stdout
    loaded = set(re.findall(r"'([\w.]+)'", output.splitlines()[-1]))
    assert "liveclone.cli.main" in loaded
    assert [name for name in heavy if name in loaded] == []


def test_every_class_of_errors_has_an_exit_code_of_its_own() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.LivecloneError)
        and kind is not errors.LivecloneError
    }
    codes = {kind: exits.code_of(kind("it failed")) for kind in kinds}
    assert codes[errors.ConfigError] == codes[errors.Refused]
    del codes[errors.ConfigError]
    assert len(set(codes.values())) == len(codes)
    assert not set(codes.values()) & {0, exits.UNEXPECTED, exits.USAGE, exits.NOT_RUN}
    assert exits.code_of(errors.LivecloneError("?")) == exits.UNEXPECTED


def test_the_exit_codes_are_in_the_help() -> None:
    text = help_of()
    for _, code, words in exits.CODES:
        assert f"{code:>3}  {words}" in text


# docs/cli.md is written by hand: it must not fall behind


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_the_documentation_has_every_verb_and_option(words: tuple[str, ...]) -> None:
    text = DOCS.read_text()
    assert f"liveclone {' '.join(words)}" in text
    common = {"--json", "--quiet", "--verbose", "--debug", "--help"}
    for parameter in VERBS[words].params:
        if parameter.param_type_name == "option":
            long = [option for option in parameter.opts if option.startswith("--")]
            assert set(long) <= common or any(f"`{option}" in text for option in parameter.opts), (
                parameter.opts
            )


def test_the_documentation_has_no_option_that_is_not_there() -> None:
    known = {
        option
        for command in (*VERBS.values(), build_command())
        for parameter in command.params
        for option in parameter.opts
    } | set(SETTINGS)
    assert set(re.findall(r"`(--[a-z-]+)", DOCS.read_text())) <= known


def test_the_documentation_has_every_exit_code() -> None:
    text = DOCS.read_text()
    for code in (0, exits.UNEXPECTED, exits.USAGE, exits.NOT_RUN, 130, 143, *(c for _, c, _ in exits.CODES)):
        assert f"| {code} |" in text
