"""Requests over a real channel: every one is answered once, in time, whatever else comes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liveclone.guest import power, priority
from liveclone.guest.channel import Channel
from liveclone.guest.errors import CallError
from liveclone.guest.items import load_items
from liveclone.guest.main import Agent
from liveclone.guest.request import Request

from .conftest import Host, Refusal


def test_ping(host: Host) -> None:
    told = host.call("ping")
    assert told["generation"] == {"counter": 0, "uuid": ""}
    assert told["items"] == [item.name for item in load_items()]
    assert told["uptime_s"] > 0


def test_unknown_call(host: Host) -> None:
    with pytest.raises(Refusal) as caught:
        host.call("no-such-thing")
    assert caught.value.code == "unknown-call"


@pytest.mark.parametrize(("urgent", "policy"), [(True, os.SCHED_RR), (False, os.SCHED_OTHER)])
def test_only_what_is_urgent_goes_before_everything_else(
    needs_root: None, root: Path, urgent: bool, policy: int
) -> None:
    if not priority.go_first():
        pytest.skip("this kernel refuses real-time priorities")
    priority.go_along()
    agent = Agent(str(root), go_first=True)
    seen: list[int] = []

    class Watched(Channel):
        def write(self, data: bytes) -> bool:
            seen.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
            return super().write(data)

    ours, its = socket.socketpair()
    channel = Watched(its.detach())
    reader = threading.Thread(target=agent.serve, args=(channel,), kwargs={"first": True})
    reader.start()
    host = Host(ours)
    try:
        for _ in range(2):  # it is so again after the first
            host.answer(host.send("ping", urgent=urgent))  # by a worker
            with pytest.raises(Refusal):
                host.answer(host.send("nothing", urgent=urgent))  # by the thread that reads
        assert seen == [policy] * 4
    finally:
        channel.stop()
        reader.join(10)
        channel.close()
        ours.close()


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b'"x"', b'{"call":"ping"}', b'{"id":7,"call":"ping"}', b'{"id":"x"}']
)
def test_what_is_no_request_gets_no_answer(host: Host, line: bytes) -> None:
    host.send_raw(b"\n" + line + b"\n")
    assert host.call("ping")["ignored_lines"] == 1


@pytest.mark.parametrize("call", [None, 7, [], {}])
def test_a_call_that_is_no_name_is_unknown(host: Host, call: object) -> None:
    host.send_raw(json.dumps({"id": "a", "call": call}).encode() + b"\n")
    assert host.receive()["error"]["code"] == "unknown-call"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_garbage_never_stops_it(host: Host, garbage: list[bytes]) -> None:
    for piece in garbage:
        host.send_raw(piece)
    host.call("ping")


args: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(
        ["key", "items", "generation", "seed", "argv", "job", "stdin", "nics", "rows", "signal", "action"]
    ),
    st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2) | st.just({}),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            "observe",
            "identify",
            "resume",
            "prepare",
            "network",
            "exec_io",
            "exec_signal",
            "exec_close",
            "exec_resize",
        ]
    ),
    args,
)
def test_senseless_arguments_are_answered(host: Host, call: str, args: dict[str, Any]) -> None:
    reply = host.reply(host.send(call, **args))
    assert reply["ok"] or reply["error"]["code"] != "internal", reply


def test_a_line_over_the_limit_is_dropped(host: Host) -> None:
    for _ in range(5):
        host.send_raw(b"x" * 1_000_000)
    assert host.call("ping")["ignored_lines"] == 1


def test_a_reply_over_the_limit_is_an_error(agent: Agent, host: Host) -> None:
    agent.calls["huge"] = lambda request: {"data": "x" * 5_000_000}
    with pytest.raises(Refusal) as caught:
        host.call("huge")
    assert caught.value.code == "too-big"


def test_the_deadline_names_what_hangs_and_the_agent_stays_usable(agent: Agent, host: Host) -> None:
    let_go = threading.Event()
    ended = threading.Event()

    def hang(request: Request) -> dict[str, Any]:
        with request.step("item clock"):
            let_go.wait(10)
        ended.set()
        return {"late": True}

    agent.calls["hang"] = hang
    began = time.monotonic()
    with pytest.raises(Refusal) as caught:
        host.call("hang", deadline_s=0.1)
    assert time.monotonic() - began < 2
    assert caught.value.code == "deadline"
    assert caught.value.error["running"] == ["item clock"]
    assert "item clock" in caught.value.error["message"]
    host.call("ping")
    let_go.set()
    assert ended.wait(5)
    later = host.send("ping")
    assert host.receive()["id"] == later  # the late result was not sent


def test_requests_do_not_wait_for_one_another(agent: Agent, host: Host) -> None:
    let_go = threading.Event()

    def hang(request: Request) -> dict[str, Any]:
        let_go.wait(10)
        return {}

    agent.calls["hang"] = hang
    ids = [host.send("hang") for _ in range(10)]
    host.call("ping")
    let_go.set()
    assert {host.receive()["id"] for _ in ids} == set(ids)


def test_too_many_requests_are_refused(agent: Agent, host: Host) -> None:
    let_go = threading.Event()
    agent.calls["hang"] = lambda request: {"ended": let_go.wait(10)}
    for _ in range(64):
        host.send("hang")
    with pytest.raises(Refusal) as caught:
        host.call("hang")
    assert caught.value.code == "busy"
    let_go.set()


def test_an_error_in_a_call_is_an_error_reply(agent: Agent, host: Host) -> None:
    def fail(request: Request) -> dict[str, Any]:
        raise RuntimeError("broken")

    def refuse(request: Request) -> dict[str, Any]:
        raise CallError("no", "not now", reason=7)

    agent.calls["fail"], agent.calls["refuse"] = fail, refuse
    with pytest.raises(Refusal, match="internal: RuntimeError: broken"):
        host.call("fail")
    with pytest.raises(Refusal) as caught:
        host.call("refuse")
    assert caught.value.error == {"code": "no", "message": "not now", "reason": 7}


def test_two_ports_are_served_side_by_side(agent: Agent, connect: Callable[[], Host]) -> None:
    control, execution = connect(), connect()
    job = execution.call("exec_start", argv=["sleep", "30"])["job"]
    waiting = execution.send("exec_io", job=job, wait_s=30, deadline_s=60)
    control.call("ping")
    control.call("exec_signal", job=job, signal="TERM")
    assert execution.answer(waiting)["exit_code"] == 143


def test_power_begins_after_the_reply(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    done = threading.Event()

    def begin(action: str) -> None:
        begun.append(action)
        done.set()

    monkeypatch.setattr(power, "_begin", begin)
    assert host.call("power", action="poweroff") == {}
    assert done.wait(5)
    assert begun == ["poweroff"]
    with pytest.raises(Refusal) as caught:
        host.call("power", action="explode")
    assert caught.value.code == "bad-request"
    assert begun == ["poweroff"]
