"""Signals undo an operation instead of killing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SOURCE

# Says where it is by lines on stdout; its undo takes until a line comes in.
PROGRAM = """
import asyncio, signal, sys
sys.path.insert(0, sys.argv[1])
from liveclone.cli import loop
from liveclone.errors import StoreError

def say(word):
    sys.stdout.write(word + "\\n"); sys.stdout.flush()

async def work():
    try:
        say("working")
        await asyncio.Event().wait()
    finally:
        say("undoing")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        if "fail" in sys.argv: raise StoreError("the undo failed")
        say("undone")

first = []
def handler(number):
    first.append(number); say(f"asked {number.name}")
    return "handle" in sys.argv and len(first) == 1

try:
    loop.run(work(), handler)
except loop.Stopped as stopped:
    say(f"stopped {stopped.number.name} {type(stopped.__cause__).__name__}")
"""


class Program:
    def __init__(self, *words: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(SOURCE), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def expect(self, line: str) -> None:
        assert self.child.stdout
        assert self.child.stdout.readline() == line + "\n"

    def send(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def go_on(self) -> None:
        assert self.child.stdin
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def end(self) -> tuple[str, str]:
        out, err = self.child.communicate(timeout=20)
        return out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_undo_run(number: signal.Signals) -> None:
    program = Program()
    program.expect("working")
    program.send(number)
    program.expect(f"asked {number.name}")
    program.expect("undoing")
    program.go_on()
    assert program.end() == (f"undone\nstopped {number.name} NoneType\n", "")


def test_a_second_signal_does_not_cut_the_undo_short() -> None:
    program = Program()
    program.expect("working")
    program.send(signal.SIGINT)
    program.expect("asked SIGINT")
    program.expect("undoing")
    program.send(signal.SIGINT)
    assert program.child.stderr
    assert "still undoing" in program.child.stderr.readline()
    program.go_on()
    assert program.end() == ("undone\nstopped SIGINT NoneType\n", "")


def test_an_undo_that_fails_is_told() -> None:
    program = Program("fail")
    program.expect("working")
    program.send(signal.SIGINT)
    program.expect("asked SIGINT")
    program.expect("undoing")
    program.go_on()
    assert program.end()[0] == "stopped SIGINT StoreError\n"


def test_a_verb_may_deal_with_a_signal_itself() -> None:
    program = Program("handle")
    program.expect("working")
    program.send(signal.SIGINT)
    program.expect("asked SIGINT")
    program.send(signal.SIGINT)
    program.expect("asked SIGINT")
    program.expect("undoing")
    program.go_on()
    assert program.end()[0] == "undone\nstopped SIGINT NoneType\n"


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        program = Program()
    finally:
        signal.signal(signal.SIGHUP, before)
    program.expect("working")
    program.send(signal.SIGHUP)
    program.send(signal.SIGTERM)
    program.expect("asked SIGTERM")
    program.go_on()
    assert "stopped SIGTERM" in program.end()[0]
    assert os.WIFEXITED(program.child.returncode)
