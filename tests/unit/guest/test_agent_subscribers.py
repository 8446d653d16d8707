"""Applications on the agent's socket: raw lines over a real one, and what the host hears of them."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import subscribers
from liveclone.guest.main import Agent

from .conftest import KEY, Host, Refusal

Hook = Callable[[str, str, str], Path]


class App:
    """An application that says only what a test lets it say."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")

    def say(self, **message: Any) -> None:
        self.say_raw(json.dumps(message).encode() + b"\n")

    def say_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def hear(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    def take(self, event: str) -> dict[str, Any]:
        """Hear the next event, which must be this one."""
        message = self.hear()
        assert message["event"] == event
        return message

    def acknowledge(self, event: str) -> dict[str, Any]:
        message = self.take(event)
        self.say(id=message["id"], ok=True)
        return message

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


Join = Callable[..., App]


@pytest.fixture
def path(root: Path) -> Path:
    return root / subscribers.PATH.lstrip("/")


@pytest.fixture
def join(agent: Agent, path: Path) -> Iterator[Join]:
    """Return what makes one more application that has subscribed."""
    agent.subscribers.open()
    with ExitStack() as stack:

        def join(name: str = "shop") -> App:
            app = App(path)
            stack.callback(app.close)
            app.say(subscribe=name)
            assert app.hear()["subscribed"] == name
            return app

        yield join
    agent.subscribers.close()


def test_everything_is_told_and_acknowledged(host: Host, join: Join, identity: dict[str, Any]) -> None:
    app = join()
    asked = host.send("prepare", key=KEY, snapshot="s1")
    message = app.acknowledge("prepare")
    assert message["snapshot"] == "s1" and 0 < message["deadline_s"] <= 8
    (report,) = host.answer(asked)["applications"]
    assert (report["name"], report["pid"], report["uid"]) == ("shop", os.getpid(), os.getuid())
    assert report["error"] == "" and report["took_ms"] > 0
    for call, event in (("identify", "cloned"), ("resume", "resumed")):
        asked = host.send(call, **identity)
        message = app.acknowledge(event)
        assert (message["generation"], message["hostname"]) == (identity["generation"], "clone-1")
        assert [r["error"] for r in host.answer(asked)["applications"]] == [""]


def test_the_call_waits_for_the_last_and_all_are_told_at_once(
    host: Host, join: Join, identity: dict[str, Any]
) -> None:
    one, other = join("one"), join("other")
    asked = host.send("identify", **identity)
    first, second = one.take("cloned"), other.take("cloned")  # nobody has acknowledged yet
    other.say(id=second["id"], ok=True)
    assert host.call("ping")
    with pytest.raises(Refusal) as caught:
        host.call("resume", deadline_s=0.1, **identity)
    assert caught.value.code in ("busy", "deadline")
    one.say(id=first["id"], ok=True)
    assert sorted(r["name"] for r in host.answer(asked)["applications"]) == ["one", "other"]


def test_the_generation_is_new_when_an_application_hears_of_it(
    host: Host, join: Join, root: Path, identity: dict[str, Any]
) -> None:
    app = join()
    asked = host.send("identify", **identity)
    message = app.take("cloned")
    assert json.loads((root / "run/liveclone/generation").read_text()) == identity["generation"]
    assert host.call("ping")["generation"] == message["generation"] == identity["generation"]
    app.say(id=message["id"], ok=True)
    host.answer(asked)
    assert join("late") and host.call("identify", **identity)  # asked again, nobody is told again


def test_an_error_is_reported_and_the_others_are_heard(
    host: Host, join: Join, identity: dict[str, Any]
) -> None:
    good, bad = join("good"), join("bad")
    asked = host.send("identify", **identity)
    bad.say(id=bad.take("cloned")["id"], error="no new key")
    good.acknowledge("cloned")
    errors = {r["name"]: r["error"] for r in host.answer(asked)["applications"]}
    assert errors == {"good": "", "bad": "no new key"}


@pytest.mark.parametrize("call", ["identify", "resume"])
def test_silence_is_named_before_the_deadline(
    host: Host, join: Join, identity: dict[str, Any], call: str
) -> None:
    good, _silent = join("good"), join("silent")
    asked = host.send(call, deadline_s=1.5, **identity)
    good.acknowledge("cloned" if call == "identify" else "resumed")
    errors = {r["name"]: r["error"] for r in host.answer(asked)["applications"]}
    assert errors["good"] == ""
    assert "did not acknowledge within" in errors["silent"]


def test_one_that_refuses_calls_it_off_for_all(host: Host, join: Join, hook: Hook, tmp_path: Path) -> None:
    good, bad = join("good"), join("bad")
    hook("resumed", "10-undo", f"touch {tmp_path}/undone")
    asked = host.send("prepare", key=KEY)
    bad.say(id=bad.take("prepare")["id"], error="in the middle of something")
    for event in ("prepare", "resumed"):
        good.acknowledge(event)
    bad.acknowledge("resumed")
    with pytest.raises(Refusal) as caught:
        host.answer(asked)
    assert caught.value.code == "application-failed"
    assert f"bad (pid {os.getpid()}, user {os.getuid()}): in the middle" in caught.value.error["message"]
    assert "good" not in caught.value.error["message"]
    assert [hook["name"] for hook in caught.value.error["undo"]] == ["10-undo"]
    assert (tmp_path / "undone").exists()


def test_silence_at_prepare_calls_it_off(host: Host, join: Join) -> None:
    app = join("silent")
    asked = host.send("prepare", key=KEY, deadline_s=1.5)
    late = app.take("prepare")
    app.acknowledge("resumed")
    with pytest.raises(Refusal, match=r"silent .* did not acknowledge"):
        host.answer(asked)
    asked = host.send("prepare", key=KEY)
    message = app.take("prepare")
    app.say(id=late["id"], error="too late, and counts for nothing")
    app.say(id=message["id"], ok=True)
    assert host.answer(asked)["applications"][0]["error"] == ""


def test_a_hook_that_fails_at_prepare_lets_applications_go_on(host: Host, join: Join, hook: Hook) -> None:
    app = join()
    hook("prepare", "10-bad", "exit 3")
    asked = host.send("prepare", key=KEY)
    app.acknowledge("prepare")
    app.acknowledge("resumed")
    with pytest.raises(Refusal, match="10-bad"):
        host.answer(asked)


CHILD = """
import json, socket, sys
app = socket.socket(socket.AF_UNIX)
app.connect(sys.argv[1])
app.sendall(b'{"subscribe": "child"}\\n')
lines = app.makefile("r")
lines.readline()
print("subscribed", flush=True)
lines.readline()
print("told", flush=True)
if sys.stdin.readline() == "hang up\\n":
    lines.close()
    app.close()
sys.stdin.readline()
"""


@pytest.mark.parametrize("dies", [True, False])
def test_one_that_dies_is_dropped_and_one_that_hangs_up_is_not(
    host: Host, join: Join, path: Path, identity: dict[str, Any], dies: bool
) -> None:
    good = join("good")
    words = [sys.executable, "-S", "-c", CHILD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "subscribed\n"
        asked = host.send("identify", **identity)
        assert child.stdout.readline() == "told\n"
        if dies:
            child.kill()
        else:
            child.stdin.write("hang up\n")
            child.stdin.flush()
        good.acknowledge("cloned")
        errors = {r["name"]: r["error"] for r in host.answer(asked)["applications"]}
        child.kill()
    assert errors == ({"good": ""} if dies else {"good": "", "child": "it hung up and runs on"})
    asked = host.send("prepare", key=KEY)
    good.acknowledge("prepare")
    assert [r["name"] for r in host.answer(asked)["applications"]] == ["good"]


def test_one_that_reads_nothing_does_not_hold_up_the_agent(
    agent: Agent, host: Host, join: Join, identity: dict[str, Any]
) -> None:
    join("deaf")
    (subscriber,) = agent.subscribers._connected.values()
    subscriber.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
    for number in range(100):
        again = dict(identity, generation={"counter": number, "uuid": f"generation {number}"})
        try:
            (report,) = host.call("resume", deadline_s=0.4, **again)["applications"]
        except Refusal:  # this machine was busy with something else
            continue
        if "does not read" in report["error"]:
            return
    pytest.fail(report["error"])


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b'{"subscribe": ""}\n',
        b'{"subscribe": "a\\u0007b"}\n',
        b'{"subscribe": 7}\n',
        b'{"id": 1, "ok": true}\n',
        b'{"subscribe": "' + b"x" * 65 + b'"}\n',
        b"x" * 17_000 + b"\n",
    ],
)
def test_nonsense_is_refused(join: Join, path: Path, line: bytes) -> None:
    other = join()
    app = App(path)
    app.say_raw(line)
    try:
        while True:
            assert "error" in app.hear()
    except (EOFError, ConnectionResetError):
        pass
    app.close()
    other.say(subscribe="again")
    assert "error" in other.hear()


def test_a_user_cannot_take_all_connections(join: Join, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "MOST", 3)
    apps = [join(f"app-{number}") for number in range(3)]
    one_more = App(path)
    assert "too many" in one_more.hear()["error"]
    one_more.close()
    apps[0].close()


def test_a_group_says_who_may_subscribe(agent: Agent, root: Path, path: Path, needs_root: None) -> None:
    agent.subscribers.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    agent.subscribers.close()
    (root / "etc/group").write_text("root:x:0:\nliveclone:x:4711:app\n")
    agent.subscribers.open()  # the old socket's file is still there
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_gid == 4711
    agent.subscribers.close()


def test_a_guest_without_room_for_a_socket_goes_on(
    agent: Agent, host: Host, root: Path, capfd: pytest.CaptureFixture[str], identity: dict[str, Any]
) -> None:
    (root / "run/liveclone").write_text("a file where a folder should be")
    agent.subscribers.open()
    assert "applications cannot subscribe" in capfd.readouterr().err
    (root / "run/liveclone").unlink()
    assert host.call("identify", **identity)["applications"] == []
