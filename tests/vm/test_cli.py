"""The command line with real guests: what only a guest of its own, a real port and a real console can show.

Parsing, rendering and everything else is in tests/unit/cli, on the fake hypervisor. The commands run in processes of their
own, in the home that the environment names, which is the lab's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liveclone.model.machine import Machine
from tests.machines import LIGHT_RAM, PATIENCE_S, Lab
from tests.unit.cli.terminal import Terminal, close_all

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
COMMAND = (sys.executable, "-m", "liveclone")


def call(*words: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *words],
        env=ENVIRONMENT,
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def run(*words: str, given: bytes | None = None) -> str:
    ended = call(*words, given=given)
    assert ended.returncode == 0, (words, ended)
    return ended.stdout.decode()


def ask(*words: str) -> Any:
    return json.loads(run(*words, "--json"))


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *words],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


def read_line(command: subprocess.Popen[bytes]) -> bytes:
    assert command.stdout
    line: bytes = command.stdout.readline()
    return line


@pytest.fixture(autouse=True)
def _close_terminals() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture
def light(lab: Lab) -> Iterator[str]:
    """A machine that was started from cold by the command: its first snapshot is a handover."""
    made = ask("run", "light", "--name", "cold", "--ram", f"{LIGHT_RAM >> 20}M")
    yield made["name"]
    run("remove", "--force", "cold")


def test_a_command_sees_its_own_guest(clone: Machine) -> None:
    assert run("exec", clone.name, "--", "hostname").strip() == clone.name
    assert run("exec", "-u", "nobody", clone.name, "--", "sh", "-c", "id -un; pwd").split() == ["nobody", "/"]
    assert run("exec", clone.name, "--", "pwd").strip() == "/root"
    ended = call("exec", clone.name, "--", "sh", "-c", "kill -9 $$")
    assert ended.returncode == 137
    assert call("exec", "-u", "no-such-user", clone.name, "true").returncode == 125
    assert call("exec", clone.name, "no-such-program").returncode == 127


def test_much_goes_through_the_port_whole(clone: Machine) -> None:
    data = os.urandom(2_000_000)
    assert call("exec", "-i", clone.name, "--", "cat", given=data).stdout == data


def test_a_terminal_in_the_guest(clone: Machine) -> None:
    terminal = Terminal(ENVIRONMENT, "exec", "-it", clone.name, "--", "bash", "--norc")
    terminal.type(b"stty size; tty\r")
    terminal.expect(rb"24 80\r\n/dev/pts/\d")
    # Until the program itself speaks, the terminal may still be the shell's, and the signal is too.
    terminal.type(b"sh -c 'echo $((6 * 7)); exec sleep 1000'\r")
    terminal.expect(rb"42\r\n")
    terminal.type(b"\x03")
    terminal.type(b"echo $?; exit 5\r")
    terminal.expect(rb"130\r\n")
    assert terminal.end() == 5


def test_a_command_goes_on_through_a_handover(light: str) -> None:
    """Everything it writes arrives once, in order; the pause of the machine is all that can be seen of it."""
    lines = 150
    command = start("exec", light, "--", "sh", "-c", f"for i in $(seq {lines}); do echo $i; sleep 0.05; done")
    assert [read_line(command) for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
    before = ask("show", light)["machine"]["process"]
    taken = ask("snapshot", light, "--name", "handed-over")
    assert ask("show", taken["name"])["snapshot"]["capture"]["method"] == "handover"
    assert ask("show", light)["machine"]["process"] != before
    assert command.poll() is None, "it ended before the snapshot: the test shows nothing"
    out, err = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, err) == (0, b"")
    assert out.decode().split() == [str(i) for i in range(4, lines + 1)]
    run("snapshot", "seal", "handed-over")
    run("snapshot", "remove", "handed-over")


def test_a_clone_does_not_go_on_with_the_command_of_its_source(light: str) -> None:
    command = start("exec", light, "--", "sh", "-c", "echo ready; cat /dev/zero")
    assert read_line(command) == b"ready\n"
    run("snapshot", light, "--name", "busy")
    made = ask("clone", "busy", "--overcommit")[0]["name"]
    assert run("exec", made, "--", "hostname").strip() == made
    command.terminate()
    command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 143
    run("remove", "--force", made)
    run("snapshot", "seal", "busy")
    run("snapshot", "remove", "busy")


def test_files_go_in_and_out(clone: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "data").write_bytes(os.urandom(500_000))
    (tree / "inner" / "program").write_text("#!/bin/sh\necho it runs\n")
    (tree / "inner" / "program").chmod(0o755)
    (tree / "link").symlink_to("inner/program")
    os.chown(tree / "data", 1234, 1234)
    run("cp", str(tree), f"{clone.name}:/opt")
    assert run("exec", clone.name, "/opt/tree/link") == "it runs\n"
    assert run("exec", clone.name, "stat", "-c", "%U:%G", "/opt/tree/data") == "root:root\n"
    run("cp", f"{clone.name}:opt/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "data").read_bytes() == (tree / "data").read_bytes()
    assert (tmp_path / "back" / "inner" / "program").stat().st_mode & 0o777 == 0o755
    ended = call("cp", f"{clone.name}:/dev", str(tmp_path / "devices"))
    assert ended.returncode == 0
    assert b"left out" in ended.stderr
    assert call("cp", f"{clone.name}:/no/such", str(tmp_path)).returncode == 4


def test_clones_by_the_command(lab: Lab, snapshotted: Any) -> None:
    made = ask("clone", snapshotted.name, "-n", "2", "-p", "0:22", "--overcommit")
    names = [one["name"] for one in made]
    assert all(one["verified"] for one in made)
    hosts = run("exec", names[0], "hostname"), run("exec", names[1], "hostname")
    assert hosts == tuple(f"{name}\n" for name in names)
    text = run("show", names[0])
    assert re.search(r"^ssh_host_keys +changed .* SHA256:", text, re.MULTILINE)
    assert re.search(r"^verified: compared with the snapshot and", text, re.MULTILINE)
    listed = {machine["name"]: machine for machine in ask("list")}
    for name in names:
        assert listed[name]["state"] == "running"
        assert listed[name]["clone_of"] == snapshotted.name
        assert listed[name]["ports"][0]["host_port"]
    run("remove", "--force", *names)


def test_the_console_and_its_log(light: str) -> None:
    assert "liveclone-agent" in run("logs", light)
    assert len(run("logs", "-n", "3", light).splitlines()) <= 3
    terminal = Terminal(ENVIRONMENT, "console", light)
    terminal.expect(rb"ctrl-\] leaves")
    terminal.type(b"\recho $((6 * 7))-is-it\r")
    terminal.expect(rb"42-is-it")
    terminal.type(b"\x1d")
    assert terminal.end() == 0
    assert "42-is-it" in run("logs", light)


def test_stop_and_start(light: str) -> None:
    run("exec", light, "--", "sh", "-c", "echo kept > /root/kept; sync")
    run("stop", "--force", light)
    assert [m["state"] for m in ask("list") if m["name"] == light] == ["stopped"]
    run("start", light)
    assert run("exec", light, "cat", "/root/kept") == "kept\n"
