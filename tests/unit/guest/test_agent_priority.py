"""Who waits while a clone becomes a machine, and that nobody waits for ever. Real processes, seen through links."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.guest.priority import Others

SLEEP = [shutil.which("sleep") or "sleep", "60"]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[int]:
    """A process of its own, which is all that this guest has."""
    with subprocess.Popen(SLEEP) as child:
        show(tmp_path, child.pid)
        try:
            yield child.pid
        finally:
            child.kill()


def show(root: Path, pid: int) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / str(pid)).symlink_to(f"/proc/{pid}")


def is_last(pid: int) -> bool:
    return os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_IDLE


def test_others_wait_and_go_on(tmp_path: Path, program: int) -> None:
    others = Others(str(tmp_path))
    others.look()
    others.put_last(housekeeping=True)
    assert not is_last(program), "it is no housekeeping"
    others.put_last(but={program})
    assert not is_last(program)
    others.put_last()
    assert is_last(program)
    others.put_back()
    assert not is_last(program)


def test_what_was_last_by_itself_stays_so(tmp_path: Path, program: int) -> None:
    os.sched_setscheduler(program, os.SCHED_IDLE, os.sched_param(0))
    others = Others(str(tmp_path))
    others.look()
    others.put_last()
    others.put_back()
    assert is_last(program)


def test_what_begins_meanwhile_goes_on_too(tmp_path: Path, program: int) -> None:
    others = Others(str(tmp_path))
    others.look()
    others.put_last()
    with subprocess.Popen(SLEEP) as later:
        os.sched_setscheduler(later.pid, os.SCHED_IDLE, os.sched_param(0))  # as a child of one that waits
        show(tmp_path, later.pid)
        others.put_back()
        assert not is_last(later.pid)
        later.kill()


def test_who_waits_when_it_is_looked_again_is_not_last_for_ever(tmp_path: Path, program: int) -> None:
    """A snapshot so soon after another that its housekeeping still waits."""
    others = Others(str(tmp_path))
    others.look()
    others.put_last()
    others.look()
    assert not is_last(program)
    others.put_last()
    assert is_last(program)
    others.put_back()
    assert not is_last(program)
