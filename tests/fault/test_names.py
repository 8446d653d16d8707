"""Names that exist, that do not, and hostile ones, given to the command beside real machines (each verb: tests/unit/cli)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liveclone.model.snapshot import CaptureMethod, Snapshot
from tests.fault.conftest import Sources
from tests.machines import PATIENCE_S, ROOT, Lab

HOSTILE = ("../x", "a/b", "x" * 300, "-rf", "a\nb", "$(touch x)")


class Command:
    """The command in a process of its own, in a folder of its own."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder

    def fail(self, code: int, error: str, *words: str) -> dict[str, Any]:
        """Run it; it must end so. Returns the error's fields."""
        at = words.index("--") if "--" in words else len(words)
        ended = subprocess.run(
            [sys.executable, "-m", "liveclone", *words[:at], "--json", *words[at:]],
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT / "src"),
                "LIVECLONE_HOME": str(self._lab.settings.home),
                "LIVECLONE_HOT": str(self._lab.settings.hot),
            },
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ended.returncode == code, (words, ended)
        fields: dict[str, Any] = json.loads(ended.stderr)
        assert fields["error"] == error, (words, fields)
        assert fields["message"] and fields["next_step"]
        assert len(ended.stderr) < 1000
        return fields


@pytest.fixture
def taken(lab: Lab, sources: Sources) -> Snapshot:
    found = lab.snapshot(sources.any(), "here", CaptureMethod.BACKGROUND)
    lab.snapshots_sealed()
    return found


@pytest.fixture
def command(lab: Lab, taken: Snapshot, tmp_path: Path) -> Iterator[Command]:
    """Give the command, and fail unless every file in its folder, in the home and beside it is as before afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()
    home, hot = lab.settings.home, lab.settings.hot

    def look() -> list[str]:
        found = [path for place in (tmp_path, home, hot) for path in place.rglob("*")]
        found += [*home.parent.iterdir(), *hot.parent.iterdir()]
        return sorted(str(path) for path in found if "locks" not in path.parts)

    before, qemus = look(), lab.qemus()
    yield Command(lab, folder)
    assert look() == before
    assert lab.qemus() == qemus


def test_hostile_names(sources: Sources, command: Command) -> None:
    source = sources.any().name
    for name in HOSTILE:
        command.fail(3, "bad-name", "run", "light", f"--name={name}")
        command.fail(3, "bad-name", "snapshot", source, f"--name={name}")
        command.fail(3, "bad-name", "clone", "here", f"--name={name}")
    sources.check()


def test_an_empty_name_for_a_clone(command: Command) -> None:
    command.fail(3, "bad-name", "clone", "here", "--name=")


def test_hostile_names_of_what_is_not_there(sources: Sources, command: Command) -> None:
    for name in (*HOSTILE, ""):
        command.fail(4, "no-machine", "remove", "--force", "--", name)
        command.fail(4, "no-snapshot", "snapshot", "remove", "--", name)
    sources.check()


def test_names_of_images(command: Command, tmp_path: Path) -> None:
    disk = tmp_path / "here" / "disk.qcow2"
    for name in ("../light", "x" * 300, "-rf", "light\n"):
        command.fail(3, "bad-name", "image", "import", f"--name={name}", "--", str(disk))
        command.fail(3, "bad-name", "run", "--", name)
        command.fail(3, "bad-name", "image", "remove", "--", name)


def test_names_that_are_taken(sources: Sources, command: Command) -> None:
    source = sources.any().name
    command.fail(3, "name-taken", "run", "light", "--name", source)
    command.fail(3, "name-taken", "snapshot", source, "--name", "here")
    command.fail(3, "name-taken", "clone", "here", "--name", source)
    command.fail(3, "name-taken", "clone", "here", "--name", "two", "--name", "two")
    sources.check()


def test_names_that_are_nearly_right(sources: Sources, command: Command) -> None:
    source = sources.any().name
    assert command.fail(4, "no-machine", "stop", source[:-1])["next_step"] == f"did you mean {source}?"
    assert command.fail(4, "no-snapshot", "clone", "hear")["next_step"] == "did you mean here?"
    # An id is enough, and so is its beginning; two characters of it are not.
    assert command.fail(4, "no-machine", "stop", sources.any().id[:2])
