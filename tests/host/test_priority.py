"""Processes that leave the host's processors to others for a while, with all their threads, and get them back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.host import priority, process
from liveclone.model.machine import ProcessRef

OURS = os.getpriority(os.PRIO_PROCESS, 0)
SOURCE = Path(__file__).resolve().parents[2] / "src"
BY_SESSION = Path("/proc/sys/kernel/sched_autogroup_enabled")

THREADS = """\
    import threading, time
    for _ in range(4):
        threading.Thread(target=time.sleep, args=(600,)).start()
    print("ready")
"""
NEW_THREADS = """\
    import threading, time
    print("ready")
    while True:
        thread = threading.Thread(target=time.sleep, args=(0.05,))
        thread.start()
"""
GIVES_WAY = f"""\
    import sys, time
    sys.path.insert(0, {str(SOURCE)!r})
    from liveclone.host import priority
    priority.give_way()
    priority.give_way()
    print("ready")
    time.sleep(600)
"""


class Starter:
    """Starts Python programs that write a line when they are ready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[ProcessRef] = []

    def __call__(self, program: str) -> ProcessRef:
        log = self.folder / f"log-{len(self.started)}"
        argv = [sys.executable, "-u", "-c", textwrap.dedent(program)]
        ref = process.start(argv, cwd=self.folder, log=log)
        self.started.append(ref)
        end = time.monotonic() + 20
        while "ready" not in log.read_text():
            assert process.is_alive(ref) and time.monotonic() < end, log.read_text()
        return ref


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for ref in starter.started:
        asyncio.run(process.end(ref))


def nices(ref: ProcessRef) -> set[int]:
    found = set()
    for thread in Path(f"/proc/{ref.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    return found


def check_session(ref: ProcessRef, nice: int) -> None:
    if BY_SESSION.exists() and BY_SESSION.read_text() == "1\n":
        assert Path(f"/proc/{ref.pid}/autogroup").read_text().split()[1:] == ["nice", str(nice)]


def test_giving_way_counts_among_sessions_too(start: Starter) -> None:
    ref = start(GIVES_WAY)
    assert nices(ref) == {10}
    check_session(ref, 10)


@pytest.mark.skipif(not priority.may_put_back(), reason="our user may not put a process back")
def test_all_threads_go_last_and_come_back(start: Starter) -> None:
    ref = start(THREADS)
    assert not priority.is_last(ref)
    for _ in range(2):
        priority.put_last(ref)
        assert nices(ref) == {19}
        check_session(ref, 19)
        assert priority.is_last(ref)
    for _ in range(2):
        priority.put_back(ref)
        assert nices(ref) == {OURS}
        check_session(ref, 0)
        assert not priority.is_last(ref)


@pytest.mark.skipif(not priority.may_put_back(), reason="our user may not put a process back")
def test_threads_that_come_meanwhile_are_not_missed(start: Starter) -> None:
    ref = start(NEW_THREADS)
    priority.put_last(ref)
    assert nices(ref) == {19}
    priority.put_back(ref)
    assert nices(ref) == {OURS}


@pytest.mark.skipif(not priority.may_put_back(), reason="our user may not put a process back")
def test_what_somebody_else_has_set_stays(start: Starter) -> None:
    ref = start(THREADS)
    os.setpriority(os.PRIO_PROCESS, ref.pid, 15)
    priority.put_last(ref)
    priority.put_back(ref)
    assert nices(ref) == {OURS, 15}


def test_a_process_that_has_ended_is_left_alone(start: Starter) -> None:
    ref = start(THREADS)
    asyncio.run(process.end(ref))
    priority.put_last(ref)
    priority.put_back(ref)
    assert not priority.is_last(ref)


def test_without_a_right_nobody_is_put_last_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("resource.getrlimit", lambda which: (0, 0))
    assert not priority.may_put_back()
    monkeypatch.setattr("resource.getrlimit", lambda which: (20, 20))
    assert priority.may_put_back()
