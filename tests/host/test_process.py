"""Processes that outlive us, are not mistaken for others, and end when they are told to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.errors import HypervisorError, NotFound
from liveclone.host import process
from liveclone.model.machine import ProcessRef

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[ProcessRef]]:
    """Return a list for what a test starts; it is ended afterwards."""
    refs: list[ProcessRef] = []
    yield refs
    for ref in refs:
        asyncio.run(process.end(ref))


def start(tmp_path: Path, *argv: str) -> ProcessRef:
    return process.start(argv, cwd=tmp_path, log=tmp_path / "log")


def start_python(tmp_path: Path, program: str) -> ProcessRef:
    """Start a Python program that writes a line to its log when it is ready, and return when it has."""
    ref = start(tmp_path, sys.executable, "-u", "-c", textwrap.dedent(program))
    end = time.monotonic() + 20
    while "ready" not in (tmp_path / "log").read_text():
        assert process.is_alive(ref) and time.monotonic() < end, (tmp_path / "log").read_text()
    return ref


def test_a_reference_names_one_process(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(tmp_path, "sleep", "60")
    started.append(ref)
    assert ref == process.ref(ref.pid)
    assert ref.boot_id == process.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert process.is_alive(ref)
    assert not process.is_alive(None)
    assert not process.is_alive(ref.replace(start_ticks=ref.start_ticks + 1)), "another with its number"
    assert not process.is_alive(ref.replace(boot_id="of another boot"))


def test_a_process_without_a_number_is_not_found() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(NotFound) as caught:
        process.ref(child.pid)
    assert caught.value.code == "not-running"


def test_a_command_name_with_parentheses_and_blanks(tmp_path: Path, started: list[ProcessRef]) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    ref = start(tmp_path, str(program), "60")
    started.append(ref)
    assert process.is_alive(ref)
    assert ref.start_ticks >= process.ref(os.getpid()).start_ticks


def test_a_zombie_is_not_alive_and_our_own_is_reaped(tmp_path: Path) -> None:
    ref = start(tmp_path, "true")
    assert process.wait_gone(ref, 10.0)
    assert not process.is_alive(ref)
    with pytest.raises(ChildProcessError):
        os.waitpid(ref.pid, os.WNOHANG)


def test_a_zombie_of_somebody_else_is_not_alive(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start_python(
        tmp_path,
        """
        import os, time
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print(pid, "ready")
        time.sleep(60)
        """,
    )
    started.append(ref)
    zombie = int((tmp_path / "log").read_text().split()[0])
    assert Path(f"/proc/{zombie}/stat").exists()
    assert not process.is_alive(process.ref(zombie))


def test_a_process_whose_first_thread_has_ended_is_alive_until_the_last_one_has(
    tmp_path: Path, started: list[ProcessRef]
) -> None:
    """Its files are open as long as any thread is there: a QEMU that is killed keeps its disk for a moment so."""
    ref = start_python(
        tmp_path,
        """
        import ctypes, threading, time
        ready = threading.Event()
        def work():
            ready.wait()
            main = f"/proc/{__import__('os').getpid()}/task/{__import__('os').getpid()}/stat"
            while open(main).read().rpartition(")")[2].split()[0] != "Z": pass
            print("ready")
            time.sleep(60)
        threading.Thread(target=work).start()
        ready.set()
        ctypes.CDLL(None).syscall(60, 0)  # exit(2) of this thread alone
        """,
    )
    started.append(ref)
    stat = Path(f"/proc/{ref.pid}/stat").read_text().rpartition(")")[2].split()
    assert stat[0] == "Z"
    assert process.is_alive(ref)


def test_it_goes_on_when_we_end(tmp_path: Path, started: list[ProcessRef]) -> None:
    program = f"""
    import sys; sys.path.insert(0, {str(SOURCE)!r})
    from pathlib import Path
    from liveclone.host import process
    folder = Path({str(tmp_path)!r})
    ref = process.start(["sh", "-c", "echo out; echo err >&2; cat; exec sleep 60"], cwd=folder, log=folder / "its-log")
    print(ref.pid, flush=True)
    """
    parent = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True
    )
    ref = process.ref(int(parent.stdout))
    started.append(ref)
    assert process.is_alive(ref)
    assert os.getsid(ref.pid) == ref.pid, "a session of its own: no terminal's signals reach it"
    assert Path(f"/proc/{ref.pid}/cwd").resolve() == tmp_path
    assert Path(f"/proc/{ref.pid}/fd/0").resolve() == Path("/dev/null")
    end = time.monotonic() + 10
    while (tmp_path / "its-log").read_text().split() != ["out", "err"]:
        assert time.monotonic() < end


def test_only_what_is_passed_is_inherited_with_its_number(tmp_path: Path, started: list[ProcessRef]) -> None:
    read_fd, write_fd = os.pipe()
    kept_fd = os.dup(0)
    os.set_inheritable(kept_fd, True)
    try:
        line = f"ls /proc/$$/fd; echo told >/proc/$$/fd/{write_fd}; exec sleep 60"
        ref = process.start(["sh", "-c", line], cwd=tmp_path, log=tmp_path / "log", pass_fds=[write_fd])
        started.append(ref)
        assert os.read(read_fd, 10) == b"told\n"
        numbers = (tmp_path / "log").read_text().split()
        assert str(write_fd) in numbers
        assert str(kept_fd) not in numbers and str(read_fd) not in numbers
    finally:
        for fd in (read_fd, write_fd, kept_fd):
            os.close(fd)


def test_the_log_is_appended_to_and_the_environment_can_be_given(tmp_path: Path) -> None:
    for word in ("one", "two"):
        line = ["sh", "-c", "echo $WORD"]
        env = {"WORD": word}
        ref = process.start(line, cwd=tmp_path, log=tmp_path / "log", env=env)
        assert process.wait_gone(ref, 10.0)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_program_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError) as caught:
        start(tmp_path, "no-such-program", "--version")
    assert caught.value.code == "cannot-start"
    assert "no-such-program" in caught.value.message


def test_waiting_ends_with_the_process_or_the_deadline(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(tmp_path, "sleep", "60")
    started.append(ref)
    began = time.monotonic()
    assert not asyncio.run(process.wait(ref, 0.05))
    assert not process.wait_gone(ref, 0.05)
    assert 0.1 <= time.monotonic() - began < 5

    async def story() -> bool:
        waiting = asyncio.create_task(process.wait(ref, 30.0))
        await asyncio.sleep(0)
        process.send(ref, signal.SIGKILL)
        return await waiting

    assert asyncio.run(story())
    assert asyncio.run(process.wait(ref, 1.0))
    assert process.wait_gone(ref, 1.0)


def test_a_signal_reaches_only_the_process_that_was_meant(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(tmp_path, "sleep", "60")
    started.append(ref)
    process.send(ref.replace(start_ticks=ref.start_ticks + 1), signal.SIGKILL)
    assert not process.wait_gone(ref, 0.05)
    assert process.is_alive(ref)
    process.send(ref, signal.SIGKILL)
    assert process.wait_gone(ref, 10.0)
    process.send(ref, signal.SIGKILL)


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("TERM"))
print("ready")
while True: time.sleep(60)
"""

POLITE = """
import signal, sys, time
def leave(*_):
    print("TERM")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "grace_s", "told"), [(POLITE, 20.0, True), (STUBBORN, 0.2, True), (STUBBORN, 0.0, False)]
)
def test_an_end_is_asked_for_and_then_enforced(
    tmp_path: Path, program: str, grace_s: float, told: bool
) -> None:
    ref = start_python(tmp_path, program)
    began = time.monotonic()
    asyncio.run(process.end(ref, grace_s=grace_s))
    assert not process.is_alive(ref)
    assert time.monotonic() - began < 15
    assert ("TERM" in (tmp_path / "log").read_text()) == told
    asyncio.run(process.end(ref, grace_s=1.0))


def test_a_stopped_process_can_be_ended(tmp_path: Path) -> None:
    ref = start(tmp_path, "sleep", "60")
    process.send(ref, signal.SIGSTOP)
    assert process.is_alive(ref)
    asyncio.run(process.end(ref))
    assert not process.is_alive(ref)
