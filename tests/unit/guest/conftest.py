"""A real agent on a socket pair, a guest's root in a temporary folder, and a kernel that records instead of acting."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from liveclone.formats import agent_frames
from liveclone.guest import process
from liveclone.guest.channel import Channel
from liveclone.guest.kernel import Kernel
from liveclone.guest.main import Agent, end_children

KEY = "5b" * 32
SEED = "a7" * 64


class RecordingKernel(Kernel):
    """Does nothing to this machine, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.name = "source"
        self.now_ns = 1_000_000_000_000_000_000
        self.seeds: list[bytes] = []
        self.cards: list[tuple[str, str, list[str]]] = []
        self.clock_was_set_to: int | None = None
        self.cid: int | None = None
        self.bound: list[str] = []
        self.hung_up: list[str] = []
        self.forgot_tracked = 0
        self.leased = 0
        self.ended: tuple[int, list[tuple[str, int]]] = (0, [])
        self.units: dict[str, str] = {}  # those of a guest, and their states
        self.asked: list[tuple[str, ...]] = []
        self.cleaned: list[str] = []
        self.has_much_to_clean = False
        self.cleaning = threading.Event()

    def hostname(self) -> str:
        return self.name

    def set_hostname(self, name: str) -> None:
        self.name = name

    def realtime_ns(self) -> int:
        return self.now_ns

    def set_realtime_ns(self, now_ns: int) -> None:
        self.clock_was_set_to = now_ns

    def add_entropy(self, seed: bytes, uncredited: bytes) -> None:
        self.seeds.append(seed)

    def end_connections(self) -> tuple[int, list[tuple[str, int]]]:
        return self.ended

    def bind(self, file: str, target: str) -> None:
        self.bound.append(target)
        Path(target).unlink()
        Path(target).hardlink_to(file)  # one file under two names, as after a bind mount

    def vsock_cid(self) -> int | None:
        return self.cid

    def hang_up(self, terminal: str) -> None:
        self.hung_up.append(terminal)

    def forget_tracked(self) -> None:
        self.forgot_tracked += 1

    def remove_leased(self) -> int:
        leased, self.leased = self.leased, 0
        return leased

    def systemctl(self, *words: str) -> tuple[int, str]:
        self.asked.append(words)
        command, *units = [word for word in words if not word.startswith("-")]
        if command == "is-active":
            return 0, "\n".join(self.units.get(unit, "inactive") for unit in units)
        self.units.update(dict.fromkeys(units, "active" if command == "start" else "inactive"))
        return 0, ""

    def stop(self, units: Sequence[str], find: Callable[[], Iterable[int]]) -> tuple[int, str]:
        find()
        return self.systemctl("stop", *units)

    def clean(self, go_on: Callable[[], None]) -> dict[str, Any]:
        self.cleaning.set()
        while self.has_much_to_clean:
            go_on()
        self.cleaned.append("rest")
        return {"disks": [], "memory_bytes": 0}

    def renew(self, environment: dict[str, str]) -> None:
        self.cleaned.append("agent")

    def interfaces(self) -> list[tuple[str, str, list[str]]]:
        return self.cards


class Refusal(Exception):
    """The agent's error reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.error = error
        self.code = error["code"]


class Host:
    """The host's end of a channel."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._ids = (f"r{number}" for number in itertools.count())
        self._rest = b""
        connection.settimeout(10)

    def send_raw(self, data: bytes) -> None:
        self._connection.sendall(data)

    def send(self, call: str, deadline_s: float = 8.0, *, urgent: bool = False, **args: Any) -> str:
        """Send a request; return its id."""
        id = next(self._ids)
        self.send_raw(agent_frames.render_request(id, call, args, deadline_s, urgent=urgent))
        return id

    def receive(self) -> dict[str, Any]:
        """Return the next message, whatever it answers."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                if line.strip():
                    message: dict[str, Any] = json.loads(line)
                    return message
                continue
            data = self._connection.recv(65536)
            if not data:
                raise EOFError
            self._rest += data

    def reply(self, id: str) -> dict[str, Any]:
        """Return the reply to request `id`; others are passed over."""
        while True:
            reply = self.receive()
            if reply["id"] == id:
                return reply

    def answer(self, id: str) -> dict[str, Any]:
        """Return the result of request `id`, or raise its error."""
        reply = self.reply(id)
        if not reply["ok"]:
            raise Refusal(reply["error"])
        result: dict[str, Any] = reply["result"]
        return result

    def call(self, call: str, deadline_s: float = 8.0, **args: Any) -> dict[str, Any]:
        return self.answer(self.send(call, deadline_s, **args))

    def run(self, *argv: str, stdin: bytes | None = None, **args: Any) -> tuple[int, bytes, bytes]:
        """Run a command to its end, as a client does."""
        job = self.call("exec_start", argv=list(argv), stdin=stdin is not None, **args)["job"]
        out, err = b"", b""
        sent = 0
        data = stdin or b""
        while True:
            given: dict[str, Any] = {}
            if stdin is not None:
                chunk = data[sent : sent + 100_000]
                given = {"stdin": {"offset": sent, "data": base64.b64encode(chunk).decode()}}
                given["eof"] = sent + len(chunk) == len(data)
            reply = self.call(
                "exec_io", job=job, stdout_from=len(out), stderr_from=len(err), wait_s=5, **given
            )
            out += base64.b64decode(reply["stdout"]["data"])
            err += base64.b64decode(reply["stderr"]["data"])
            sent = reply["stdin_offset"]
            if stdin is not None and sent == len(data) and given.get("eof"):
                stdin = None
            if reply["exit_code"] is not None:
                self.call("exec_close", job=job)
                return reply["exit_code"], out, err


@pytest.fixture(autouse=True)
def commands_hear_control_c() -> Iterator[None]:
    """A shell starts what runs in the background deaf to SIGINT, and that is inherited, down to the commands here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a small guest without host keys."""
    root = tmp_path / "root"
    for folder in ("etc/ssh", "run", "proc", "var/lib/dbus"):
        (root / folder).mkdir(parents=True)
    (root / "etc/hostname").write_text("source\n")
    (root / "etc/hosts").write_text("127.0.0.1\tlocalhost\n127.0.1.1\tsource.example.org source\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/machine-id").chmod(0o444)
    (root / "var/lib/dbus/machine-id").symlink_to("../../../etc/machine-id")
    return root


@pytest.fixture
def kernel() -> RecordingKernel:
    return RecordingKernel()


@pytest.fixture
def agent(root: Path, kernel: RecordingKernel) -> Agent:
    return Agent(str(root), kernel)


@pytest.fixture
def connect(agent: Agent) -> Iterator[Callable[[], Host]]:
    """Return what opens one more port of the agent; each is served by a thread of its own."""
    with contextlib.ExitStack() as stack:

        def connect() -> Host:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            channel = Channel(theirs.detach())
            thread = threading.Thread(target=agent.serve, args=(channel,))
            thread.start()

            def end() -> None:
                channel.stop()
                thread.join(5)
                assert not thread.is_alive()
                channel.close()

            stack.callback(end)
            return Host(ours)

        yield connect
    end_children()
    assert process.living() == []


@pytest.fixture
def host(connect: Callable[[], Host]) -> Host:
    return connect()


@pytest.fixture
def identity() -> dict[str, Any]:
    """Return the arguments of identify."""
    return {
        "key": KEY,
        "generation": {"counter": 1, "uuid": "6f9619ff-8b86-4d11-b42d-00c04fc964ff"},
        "seed": SEED,
        "wall_clock_ns": 1_700_000_000_000_000_000,
        "hostname": "clone-1",
    }


@pytest.fixture
def hook(root: Path) -> Callable[[str, str, str], Path]:
    """Return what writes a hook: event, name, shell text."""

    def write(event: str, name: str, text: str) -> Path:
        path = root / "etc/liveclone/hooks.d" / event / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
