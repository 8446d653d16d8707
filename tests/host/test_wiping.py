"""What programs leave behind in memory, seen through a pipe that still has a page of theirs when they have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from liveclone.guest import process, wiping

PAGE = os.sysconf("SC_PAGE_SIZE")
SECRET = b"not for others; "

# Puts a page of its memory into the pipe on its stdout, without a copy of it, and says so.
PROGRAM = """
import ctypes, mmap, os, signal, subprocess, sys, threading
page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page[:] = b"not for others; " * (mmap.PAGESIZE // 16)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def show():
    vector = Vector(ctypes.addressof(ctypes.c_char.from_buffer(page)), len(page))
    assert ctypes.CDLL(None).vmsplice(1, ctypes.byref(vector), ctypes.c_ulong(1), 0) == len(page)
def is_well():
    return page[:] == b"not for others; " * (mmap.PAGESIZE // 16)
def say(text):
    os.write(2, text.encode() + b"\\n")
"""
PLAIN = "show(); say('ready'); signal.pause()"
THREADS = """
show()
for _ in range(3):
    threading.Thread(target=signal.pause).start()
say('ready')
signal.pause()
"""
# Tells of its own end; a thread of it ends before.
HANDLER = """
def end(*_):
    thread = threading.Thread(target=show)
    thread.start()
    while len(os.listdir('/proc/self/task')) > 1:
        pass
    say('well' if is_well() else 'harmed')
    os._exit(0)
signal.signal(signal.SIGTERM, end)
say('ready')
while True:
    signal.pause()
"""
# Starts others while it is followed: one in its own memory for a moment, one that cannot be started, and a copy of itself.
FAMILY = """
def end(*_):
    subprocess.run(['/bin/true'], check=True)
    try:
        os.posix_spawn('/nothing', ['/nothing'], {})
    except FileNotFoundError:
        pass
    if os.fork() == 0:
        page[0:1] = b'N'
        page[0:1] = b'n'
        show()
        os._exit(0)
    os.wait()
    say('well' if is_well() else 'harmed')
    os._exit(0)
signal.signal(signal.SIGTERM, end)
say('ready')
while True:
    signal.pause()
"""


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", PROGRAM + program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        try:
            assert started.stderr is not None
            assert started.stderr.readline() == b"ready\n"
            yield started
        finally:
            started.kill()


# Not in this process: what we are told of a child of our own, nobody else of us is.
FOLLOW = """
import sys
from liveclone.guest import process, wiping
script, *pids = sys.argv[1:]
sys.exit(wiping.run(lambda: process.start(["sh", "-c", script]), lambda: map(int, pids)))
"""


def follow(script: str, *pids: int) -> int:
    argv = [sys.executable, "-c", FOLLOW, script, *map(str, pids)]
    return subprocess.run(argv, check=False, timeout=60).returncode


def end(started: subprocess.Popen[bytes], *followed: int) -> tuple[bytes, bytes]:
    """End it, and return the page that it leaves, and what it has said."""
    proc = f"/proc/{started.pid}"
    is_there = (
        f"[ $(ls {proc}/task | wc -l) -gt 1 ] || ! grep -q '^State:.Z' {proc}/status"  # one of its threads
    )
    assert follow(f"kill {started.pid}; while {is_there}; do sleep 0.01; done; exit 7", *followed) == 7
    assert started.stdout is not None
    assert started.stderr is not None
    return os.read(started.stdout.fileno(), PAGE), started.stderr.read()


@pytest.fixture(autouse=True)
def may_follow(needs: Callable[..., None]) -> None:
    needs(root=True)


def test_without_us_the_page_is_what_it_was() -> None:
    with running(PLAIN) as started:
        assert end(started) == (SECRET * (PAGE // len(SECRET)), b"")


@pytest.mark.parametrize("program", [PLAIN, THREADS], ids=["one thread", "threads"])
def test_a_program_that_a_signal_ends_leaves_nothing(program: str) -> None:
    with running(program) as started:
        assert end(started, started.pid) == (bytes(PAGE), b"")
        assert started.wait() == -signal.SIGTERM


@pytest.mark.parametrize("program", [HANDLER, FAMILY], ids=["handler", "family"])
def test_it_has_its_memory_until_it_ends(program: str) -> None:
    with running(program) as started:
        assert end(started, started.pid) == (bytes(PAGE), b"well\n")
        assert started.wait() == 0


def test_one_that_goes_on_is_let_go() -> None:
    with running(HANDLER) as started:
        assert follow("exit 0", started.pid) == 0
        assert "TracerPid:\t0\n" in Path(f"/proc/{started.pid}/status").read_text()
        assert end(started)[1] == b"well\n"


def test_one_that_stands_still_stays_so() -> None:
    """A stop by a signal is its own affair: it does not go on because of us."""
    with running(PLAIN) as started:
        status = Path(f"/proc/{started.pid}/status")
        script = f"kill -STOP {started.pid}; until grep -q '^State:.[tT]' {status}; do sleep 0.01; done"
        assert follow(script, started.pid) == 0
        os.waitid(os.P_PID, started.pid, os.WSTOPPED | os.WNOWAIT)
        assert "State:\tT (stopped)" in status.read_text()
        os.kill(started.pid, signal.SIGCONT)


def test_what_ended_before_is_no_fault() -> None:
    with running(PLAIN) as started:
        started.kill()
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
        assert follow("exit 3", started.pid, 2**22 + 1) == 3


def test_a_command_that_cannot_start_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        wiping.run(lambda: process.start(["/nothing"]), list)


REGISTERS = """
import os, sys
from liveclone.guest import wiping
tid, tracer = int(sys.argv[1]), wiping._Tracer()
number, kept = wiping._VECTORS[os.uname().machine]
assert tracer.seize(tid)
tracer._ptrace(wiping._INTERRUPT, tid, 0)
os.waitpid(tid, wiping._OWN_AND_ALL_KINDS)
registers = bytearray(tracer.registers(wiping._GETREGSET, tid, number))
registers[160:176] = b"not for others; "  # xmm0, of FXSAVE
if kept:
    registers[512] |= 2  # its kind of registers is in use
tracer.registers(wiping._SETREGSET, tid, number, bytes(registers))
assert b"not for others; " in tracer.registers(wiping._GETREGSET, tid, number)
tracer.clear_registers(tid)
assert b"not for others; " not in tracer.registers(wiping._GETREGSET, tid, number)
"""


def test_nothing_stays_in_vector_registers() -> None:
    """They outlast a task among the kernel's own objects, where it cannot be seen from here."""
    with running(PLAIN) as started:
        subprocess.run([sys.executable, "-c", REGISTERS, str(started.pid)], check=True, timeout=60)


def test_only_pages_that_nobody_else_has_are_overwritten() -> None:
    present, of_file, alone = 1 << 63, 1 << 61, 1 << 56
    own = present | alone
    entries = array("Q", [0, own, own | 5, present, own | of_file, 1 << 62, own])
    assert list(wiping._runs(memoryview(entries))) == [(1, 2), (6, 1)]
    assert list(wiping._runs(memoryview(array("Q", [0, 1 << 55])))) == []
