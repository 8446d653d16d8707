"""A run that was killed leaves processes and a folder; the next one ends and removes them, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cloud import make_folder, remove_leftovers

# A libvirtd, and beside it a process that names no folder.
OWNER = """
import contextlib, signal, subprocess, sys
from pathlib import Path
from allinone import borrowed, cloud

undo = contextlib.ExitStack()
folder = cloud.make_folder(undo)
with borrowed.libvirtd.Libvirtd(folder / "libvirt", cache=Path(sys.argv[1])) as daemon:
    other = subprocess.Popen([*daemon.inside, "env", "-i", "sleep", "600"])
    print(folder, daemon.pid, other.pid, flush=True)
    signal.pause()
"""


def is_running(pid: str) -> bool:
    """Not that its number is free: a process 1 that is no init leaves zombies."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_what_a_killed_run_leaves_is_ended_and_removed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("missing here: root")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        try:
            assert owner.stdout is not None
            folder, *pids = owner.stdout.readline().split()
            remove_leftovers()
            assert [is_running(pid) for pid in pids] == [True, True], "its owner lives"
            assert Path(folder).is_dir()
        finally:
            owner.kill()
    assert [is_running(pid) for pid in pids] == [True, True]
    remove_leftovers()
    assert [is_running(pid) for pid in pids] == [False, False]
    assert not Path(folder).exists()


def test_a_run_that_lives_keeps_its_folder() -> None:
    with contextlib.ExitStack() as undo:
        folder = make_folder(undo)
        remove_leftovers()
        assert folder.is_dir()
    assert not folder.exists()
