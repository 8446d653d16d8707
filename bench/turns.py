"""Two revisions measured by turns: the one that is asked for, in a worktree of its own, and this checkout as it stands.

    before after | after before | before after | ...          --pairs of them; what drifts on the host meets both alike

Both are measured by this checkout's benchmarks, so the ruler is the same, and a benchmark that the other revision has not
can be used on it; what differs is the `liveclone` that Python finds first. Where the pinned packages are the same both
run in this environment, else the worktree's own `./dev` makes one. Guest images of the other revision have a cache of
their own, as its guests may hold another agent; it stays for the next time (`./dev clean`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from liveclone.errors import HypervisorError, NotFound, StoreError

from . import lab, series
from .comparison import Comparison, compare
from .series import Entry

ROOT = Path(__file__).resolve().parent.parent
PINS = "requirements/dev.txt"
END_DEADLINE_S = 120.0  # for a run that was told to end to remove its machines


@dataclass
class Side:
    """One revision: where its sources are, which Python runs them, what has been measured of it."""

    name: str
    root: Path
    python: Path
    cache: Path
    runs: list[list[Entry]] = field(default_factory=list)

    def environment(self) -> Mapping[str, str]:
        """Return what makes a Python, and those that it starts, find this revision before any that is installed."""
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(str(path) for path in (self.root / "src", ROOT)),
            "LIVECLONE_DEV_CACHE": str(self.cache),
        }


def measure(revision: str, pairs: int, arguments: Sequence[str], screen: Console) -> tuple[Comparison, bool]:
    """Measure both by turns; returns the comparison of all whole pairs, and whether it was interrupted before the last.

    Args:
        revision: as git understands it.
        arguments: those of `./dev bench` that choose what is measured.

    Raises:
        NotFound: there is no such revision, or this is no git checkout. StoreError, HypervisorError: it cannot be checked
            out, set up or measured. Nothing is left in any case, nor when this is interrupted.
    """
    interrupted = False
    with _stoppable(), open_worktree(revision) as (before, folder):
        set_up(before, screen)
        cache = Path(os.environ.get("LIVECLONE_DEV_CACHE") or ROOT / ".dev" / "cache")
        after = Side(_describe("HEAD", dirty=True), ROOT, Path(sys.executable), cache)
        before.cache = cache / "compare"
        try:
            for number, side in enumerate(order(before, after, pairs), 1):
                screen.rule(f"{number} of {2 * pairs}: {side.name}")
                side.runs.append(_run(side, arguments, folder / "series.json"))
        except KeyboardInterrupt:
            interrupted = True
    whole = min(len(before.runs), len(after.runs))
    return compare((before.name, after.name), before.runs[:whole], after.runs[:whole]), interrupted


def order(before: Side, after: Side, pairs: int) -> list[Side]:
    """Return who is measured when: each pair begins with the one that the pair before ended with."""
    return [side for i in range(pairs) for side in ((before, after), (after, before))[i % 2]]


@contextlib.contextmanager
def open_worktree(revision: str) -> Iterator[tuple[Side, Path]]:
    """Check a revision out into a temporary folder, and remove it with all that is in it; yields it and that folder."""
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    undo = ExitStack()
    try:
        folder = lab.temporary_folder()
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        tree = folder / "tree"
        _git("worktree", "add", "--detach", "--quiet", str(tree), commit)
        undo.callback(_git, "worktree", "remove", "--force", str(tree))
        yield Side(_describe(commit), tree, Path(sys.executable), folder), folder
    finally:
        with _undisturbed():
            undo.close()


def set_up(side: Side, screen: Console) -> None:
    """Have its own `./dev` make it an environment, unless it runs in this one."""
    if (side.root / PINS).read_bytes() == (ROOT / PINS).read_bytes():
        return
    screen.print(f"{side.name} has other packages: it gets an environment of its own", highlight=False)
    made = subprocess.run([side.root / "dev", "run", "--version"], stdout=subprocess.DEVNULL, check=False)
    side.python = side.root / ".dev" / "venv" / "bin" / "python"
    if made.returncode or not side.python.exists():
        raise StoreError(
            f"{side.name} cannot be set up",
            code="no-environment",
            tried="its ./dev run --version",
            on=side.name,
            seen=f"exit status {made.returncode}",
            next_step="see above for what it said",
        )


def _run(side: Side, arguments: Sequence[str], file: Path) -> list[Entry]:
    """Measure one revision once, in a process of its own."""
    argv = [str(side.python), "-P", "-m", "bench", "--quiet", "--json", str(file), *arguments]
    # Not in the terminal's foreground group: a Ctrl-C is ours to pass on, once.
    child = subprocess.Popen(argv, env=side.environment(), process_group=0)
    try:
        status = child.wait()
    finally:
        with _undisturbed():
            _end(child)
    if status:
        raise HypervisorError(
            f"{side.name} could not be measured",
            code="not-measured",
            tried=f"./dev bench {' '.join(arguments)}",
            on=side.name,
            seen=f"exit status {status}",
            next_step="see above for what it said; a revision that is too old for these benchmarks cannot be compared",
        )
    try:
        return series.load(file)
    except FileNotFoundError:  # nothing there was measured, and it has said why
        return []
    finally:
        file.unlink(missing_ok=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP be what Ctrl-C is."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Finish what is in the block: it removes what would be left."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(commit: str, *, dirty: bool = False) -> str:
    """Return a short name of a commit, with a word for what is not committed yet."""
    short = _git("rev-parse", "--short", commit)
    return f"{short}-changed" if dirty and _git("status", "--porcelain", "--untracked-files=no") else short


def _git(*arguments: str) -> str:
    """Run git in this checkout and return what it said.

    Raises:
        NotFound: it refused.
    """
    argv = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotFound(
            "git cannot be run", code="no-git", tried=" ".join(argv), seen=str(error), next_step="install git"
        ) from error
    if done.returncode:
        raise NotFound(
            "git does not have this revision" if "rev-parse" in arguments else "git refused",
            code="no-such-revision",
            tried=" ".join(argv),
            on=arguments[-1],
            seen=done.stderr.strip() or f"exit status {done.returncode}",
            next_step="git log --oneline",
        )
    return done.stdout.strip()
