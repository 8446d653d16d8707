"""`./dev bench --compare`: a revision in a worktree of its own, of which nothing is left (bench/turns.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import turns
from liveclone.errors import NotFound

ROOT = Path(__file__).resolve().parents[2]
WHO = ("-c", "user.name=t", "-c", "user.email=t@localhost")


def git(repository: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(repository), *WHO, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def worktrees(repository: Path) -> list[Path]:
    lines = git(repository, "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with what is measured and what measures it, and a change that is not committed."""
    repository = tmp_path / "checkout"
    for folder in ("bench", "src", "requirements", "tests"):
        shutil.copytree(ROOT / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "all")
    (repository / turns.PINS).write_text("# other packages\n")
    return repository


def test_a_revision_is_checked_out_beside_and_nothing_of_it_is_left(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "ROOT", checkout)
    with contextlib.suppress(KeyboardInterrupt), turns.open_worktree("HEAD") as (side, folder):
        assert (side.root / turns.PINS).read_bytes() == (ROOT / turns.PINS).read_bytes()
        assert side.name == git(checkout, "rev-parse", "--short", "HEAD")
        assert worktrees(checkout) == [checkout, side.root]
        (side.root / "src" / "left").write_text("by a run")
        raise KeyboardInterrupt
    assert not folder.exists()
    assert worktrees(checkout) == [checkout]
    assert (checkout / turns.PINS).read_text() == "# other packages\n"


def test_a_revision_that_is_none_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ROOT", checkout)
    with pytest.raises(NotFound) as caught, turns.open_worktree("--no-such"):
        pass
    assert caught.value.code == "no-such-revision"
    assert "--no-such" in caught.value.on
    assert worktrees(checkout) == [checkout]


def test_what_is_measured_is_the_revisions_own_liveclone(checkout: Path) -> None:
    (checkout / "src" / "liveclone" / "__init__.py").write_text("WHICH = 'this one'\n")
    side = turns.Side("one", checkout, Path(sys.executable), checkout)
    argv = [sys.executable, "-P", "-c", "import liveclone; print(liveclone.WHICH)"]
    said = subprocess.run(argv, env=side.environment(), capture_output=True, text=True, check=True)
    assert said.stdout == "this one\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_stopped_while_it_measures_leaves_nothing(
    checkout: Path, number: signal.Signals
) -> None:
    git(checkout, "checkout", "--quiet", ".")
    command = ["bench", "--compare", "HEAD", "--only", "formats", "--pairs", "1"]
    running = subprocess.Popen(
        [sys.executable, "-P", "-m", *command],
        env=os.environ | {"PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{checkout}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        assert running.stderr is not None
        said = ""
        while "a stream" not in said:  # splitting it, or left out: no memory
            line = running.stderr.readline()
            assert line, said
            said += line
        tree = worktrees(checkout)[-1]
        assert tree != checkout
        running.send_signal(number)
        rest = running.stderr.read()
        assert running.wait() == 130, said + rest
    assert "interrupted after 0 of 1 pairs" in rest
    assert not tree.parent.exists()
    assert worktrees(checkout) == [checkout]
