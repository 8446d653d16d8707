"""The rules in tests/conftest.py are kept: each is broken on purpose in a small run of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Needs

TESTS = Path(__file__).resolve().parents[1]

LEAVES_ALL_BEHIND = """
import os, pathlib, subprocess

def test_that_leaves_things_behind():
    line = ["sh", "-c", "echo up; sleep 600; :"]
    child = subprocess.Popen(line, start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    child.stdout.close()
    child.returncode = 0
    pathlib.Path(os.environ["LIVECLONE_HOT"]).with_name("memory").touch()
"""
FAILS_WITH_A_LOG = """
import os, pathlib

def test_that_fails(tmp_path):
    for folder in (tmp_path, pathlib.Path(os.environ["LIVECLONE_HOME"], "machines", "0123")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "qemu.log").write_text("its last words")
    raise AssertionError
"""
TIERS = {
    "tests/vm/test_b.py": "def test_guest(): pass",
    "tests/fault/test_c.py": "import pytest\ndef test_kill(): pass\n@pytest.mark.light\ndef test_light(): pass",
    "tests/unit/test_d.py": "import pytest\ndef test_pure(): pass\n@pytest.mark.machine\ndef test_not(): pass",
    "tests/contract/test_a.py": "def test_kit(): pass",
}
# While the one that is alone runs, none of the others may begin.
ALONE = {
    "tests/vm/test_others.py": """
import os, pytest, select

@pytest.mark.parametrize("number", range(20))
def test_other(number):
    bell = os.open("bell", os.O_RDWR | os.O_NONBLOCK)
    os.write(bell, b"x")
    select.select([], [], [], 0.02)
    os.close(bell)
""",
    "tests/fault/test_alone.py": """
import os, pytest, select

@pytest.mark.alone
def test_alone():
    bell = os.open("bell", os.O_RDWR | os.O_NONBLOCK)
    os.write(bell, b"x")
    os.read(bell, 100)
    assert select.select([bell], [], [], 0.2) == ([], [], [])
    os.close(bell)
""",
}
KILLS_ITSELF = """
import os, signal, subprocess

def test_that_ends_its_process():
    child = subprocess.Popen(["sleep", "601"], start_new_session=True)
    print(child.pid, file=open("pid", "w"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
NEEDS = "def test_it(needs): needs('sh')\ndef test_that(needs): needs('no-such-tool')"


def run(folder: Path, files: dict[str, str], *arguments: str, ci: str = "") -> tuple[int, str]:
    """Run pytest on made-up tests under the real rules; returns its exit status and what it printed."""
    (folder / "tests").mkdir()
    for name in ("conftest.py", "spread.py"):
        shutil.copy(TESTS / name, folder / "tests")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -p no:cacheprovider\n")
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *arguments, "tests"],
        cwd=folder,
        env=os.environ | {"CI": ci, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return outcome.returncode, outcome.stdout + outcome.stderr


def order(output: str) -> list[str]:
    return [line.split("::")[1].split()[0] for line in output.splitlines() if "::" in line and "%]" in line]


def is_running(pid: str) -> bool:
    """Not that its number is free: a process 1 that is no init leaves zombies."""
    try:
        return Path("/proc", pid, "cmdline").read_bytes() != b""
    except OSError:
        return False


def test_what_a_run_leaves_behind_is_named_and_then_removed(tmp_path: Path) -> None:
    status, output = run(tmp_path, {"tests/unit/test_it.py": LEAVES_ALL_BEHIND})
    assert status == 1
    assert "left behind by this run" in output
    assert "sleep 600" in output
    image = next(line.split()[-1] for line in output.splitlines() if "memory image" in line)
    pid = next(line for line in output.splitlines() if "sleep 600" in line).split("process ")[1].split(":")[0]
    assert not Path(image).parent.exists()
    assert not is_running(pid)


def test_the_logs_of_a_failed_test_are_kept(tmp_path: Path) -> None:
    status, output = run(tmp_path, {"tests/host/test_it.py": FAILS_WITH_A_LOG})
    assert status == 1
    assert "logs kept" in output
    kept = sorted((tmp_path / ".dev" / "log" / "failed").rglob("qemu.log"))
    assert [file.read_text() for file in kept] == ["its last words"] * 2


def test_the_tiers_run_in_order(tmp_path: Path) -> None:
    status, output = run(tmp_path, TIERS)
    assert status == 0
    assert order(output) == ["test_pure", "test_not", "test_kit", "test_guest", "test_kill", "test_light"]


def test_fast_leaves_out_what_starts_a_guest(tmp_path: Path) -> None:
    status, output = run(tmp_path, TIERS, "--fast")
    assert status == 0
    assert order(output) == ["test_pure", "test_kit", "test_light"]


def test_a_test_outside_of_the_tiers_is_refused(tmp_path: Path) -> None:
    status, output = run(tmp_path, {"tests/test_it.py": "def test_it(): pass"})
    assert status != 0
    assert "none of the tiers" in output


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 passed, 1 skipped"), ("true", "1 failed, 1 passed")])
def test_a_missing_tool_skips_at_home_and_fails_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    _, output = run(tmp_path, {"tests/unit/test_it.py": NEEDS}, ci=ci)
    assert outcome in output
    assert "no-such-tool" in output


def test_one_that_must_be_alone_is_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bell")
    bell = os.open(tmp_path / "bell", os.O_RDWR)  # what is in it stays
    status, output = run(tmp_path, ALONE, "-n", "2", "--dist", "loadfile")
    os.close(bell)
    assert status == 0, output
    assert "21 passed" in output
    workers = {line.split("]")[0]: line for line in output.splitlines() if line.startswith("[gw")}
    assert len(workers) == 2, "one of each end"


def test_what_a_killed_process_of_the_run_leaves_behind_is_removed(tmp_path: Path) -> None:
    files = {"tests/unit/test_it.py": KILLS_ITSELF}
    status, output = run(tmp_path, files, "-n", "1", "--dist", "loadfile", "--max-worker-restart", "0")
    assert status == 1
    assert "crashed" in output
    assert not is_running((tmp_path / "pid").read_text().strip())


def test_a_network_namespace_that_is_left_behind_is_named(tmp_path: Path, needs: Needs) -> None:
    needs("ip", root=True)
    own, other = (f"lc-test-{os.urandom(4).hex()}" for _ in range(2))
    test = f"from tests.conftest import note_namespace\ndef test_it(): note_namespace({own!r})"
    with contextlib.ExitStack() as undo:
        for name in (own, other):  # the other one is somebody else's, and may come and go
            subprocess.run(["ip", "netns", "add", name], check=True)
            undo.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        status, output = run(tmp_path, {"tests/unit/test_it.py": test})
    assert status == 1
    assert f"network namespace {own}" in output
    assert other not in output
