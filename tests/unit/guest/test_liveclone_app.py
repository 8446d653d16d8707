"""The client for applications, against a real agent's socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import liveclone_app, subscribers
from liveclone.guest.liveclone_app import Event
from liveclone.guest.main import Agent
from liveclone.guest.subscribers import Subscribers

from .conftest import KEY, Host, Refusal

CLIENT = Path(liveclone_app.__file__)


@pytest.fixture
def path(agent: Agent, root: Path) -> Iterator[str]:
    agent.subscribers.open()
    yield str(root / subscribers.PATH.lstrip("/"))
    agent.subscribers.close()


def wait_for(condition: Any) -> None:
    """Wait for what nobody tells of."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_thread_handles_events(host: Host, path: str, identity: dict[str, Any]) -> None:
    seen: list[Event] = []
    liveclone_app.watch("shop", seen.append, path)
    (report,) = host.call("prepare", key=KEY, snapshot="s1")["applications"]
    assert (report["name"], report["error"]) == ("shop", "")
    host.call("identify", **identity)
    host.call("resume", **identity)
    assert [event.kind for event in seen] == ["prepare", "cloned", "resumed"]
    assert seen[0].snapshot == "s1" and seen[0].deadline_s > 0
    for event in seen[1:]:
        assert (event.generation, event.counter) == (identity["generation"]["uuid"], 1)
    assert seen[1].hostname == "clone-1"


def test_a_handler_that_raises_fails_the_event(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch, identity: dict[str, Any]
) -> None:
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda *found: printed.append(found))

    def handle(event: Event) -> None:
        raise RuntimeError("no key")

    liveclone_app.watch("shop", handle, path)
    for _ in range(2):  # and it is there for the next one
        identity["generation"] = dict(identity["generation"], uuid=os.urandom(4).hex())
        (report,) = host.call("identify", **identity)["applications"]
        assert report["error"] == "RuntimeError: no key"
    assert len(printed) == 2


def test_a_loop_that_forgets_an_event_has_failed_it(
    host: Host, agent: Agent, path: str, identity: dict[str, Any]
) -> None:
    def loop() -> None:
        events = liveclone_app.events("shop", path)
        next(events).done()
        next(events)
        next(events).failed("not now")

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    wait_for(agent.subscribers.pids)
    assert host.call("prepare", key=KEY)["applications"]
    (report,) = host.call("identify", **identity)["applications"]
    assert report["error"] == "the program did not say that it is done"
    with pytest.raises(Refusal, match="not now"):
        host.call("prepare", key=KEY)


def test_it_comes_back_to_a_new_agent(host: Host, agent: Agent, path: str, identity: dict[str, Any]) -> None:
    seen: list[Event] = []
    liveclone_app.watch("shop", seen.append, path)
    host.call("resume", **identity)
    agent.subscribers.close()
    agent.subscribers.open()
    wait_for(agent.subscribers.pids)
    assert [r["name"] for r in host.call("prepare", key=KEY)["applications"]] == ["shop"]
    assert [event.kind for event in seen] == ["resumed", "prepare"]


def test_a_generation_that_it_missed_is_told_afterwards(
    host: Host, agent: Agent, root: Path, path: str, identity: dict[str, Any]
) -> None:
    """The agent was not there when the machine changed: also when the program was about to subscribe just then."""
    seen: list[Event] = []
    liveclone_app.watch("shop", seen.append, path)
    host.call("resume", **identity)
    agent.subscribers.close()
    (root / "run/liveclone/generation").write_text(json.dumps({"counter": 5, "uuid": "another"}))
    agent.subscribers.open()
    wait_for(lambda: len(seen) == 2)
    assert (seen[1].kind, seen[1].generation, seen[1].counter) == ("cloned", "another", 5)
    host.call("prepare", key=KEY)
    assert [event.kind for event in seen] == ["resumed", "cloned", "prepare"]


def test_it_waits_for_an_agent_that_starts_later(root: Path) -> None:
    path = str(root / subscribers.PATH.lstrip("/"))
    liveclone_app.watch("shop", lambda event: None, path)
    late = Subscribers(str(root))
    late.open()
    wait_for(late.pids)
    late.close()


def test_a_bad_name_is_refused(path: str) -> None:
    with pytest.raises(liveclone_app.Refused, match="NAME"):
        liveclone_app.watch("", lambda event: None, path)


def test_a_shell_script_takes_part(
    host: Host, agent: Agent, path: str, tmp_path: Path, identity: Any
) -> None:
    log = tmp_path / "log"
    script = f'echo $LIVECLONE_EVENT $LIVECLONE_HOSTNAME >> {log}; [ "$LIVECLONE_EVENT" != resumed ]'
    # The path cannot be given on the command line: in a guest there is only one.
    code = f"import sys; sys.path[0] = {str(CLIENT.parent)!r}; import liveclone_app as app; app.run.__defaults__ = "
    code += f"({path!r},); sys.exit(app.main(sys.argv[1:]))"
    words = [sys.executable, "-S", "-c", code, "run", "script", "--", "sh", "-c", script]
    with subprocess.Popen(words) as child:
        wait_for(agent.subscribers.pids)
        assert host.call("prepare", key=KEY)["applications"][0]["error"] == ""
        assert host.call("identify", **identity)["applications"][0]["error"] == ""
        assert host.call("resume", **identity)["applications"][0]["error"] == "sh ended with 1"
        child.kill()
    assert log.read_text().splitlines() == ["prepare", "cloned clone-1", "resumed clone-1"]


@pytest.mark.parametrize(
    "words", [[], ["run"], ["run", "name"], ["run", "name", "command"], ["walk", "a", "--", "b"]]
)
def test_wrong_words_are_told_the_right_ones(words: list[str]) -> None:
    ran = subprocess.run([sys.executable, CLIENT, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and ran.stderr == liveclone_app.USAGE + "\n"
