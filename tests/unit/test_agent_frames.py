"""Questions and answers on the agent's wire, whatever else lies on it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import GuestError
from liveclone.formats import agent_frames
from liveclone.guest import frames as guest_frames


def reply(request_id: str, **fields: object) -> bytes:
    return json.dumps({"id": request_id, "ok": True} | fields).encode() + b"\n"


def test_a_request_is_one_line_between_newlines() -> None:
    data = agent_frames.render_request("7", "ping", {"text": "a\nb", "n": 1}, 2.5)
    assert data.startswith(b"\n") and data.endswith(b"\n") and data.count(b"\n") == 2
    assert json.loads(data) == {
        "id": "7",
        "call": "ping",
        "args": {"text": "a\nb", "n": 1},
        "deadline_s": 2.5,
    }


def test_a_request_that_the_agent_would_drop_is_refused() -> None:
    with pytest.raises(GuestError) as caught:
        agent_frames.render_request("7", "exec_io", {"data": "x" * agent_frames.LINE_BYTES}, 1.0)
    assert caught.value.code == "too-long"
    assert agent_frames.LINE_BYTES <= guest_frames.LIMIT


def test_replies() -> None:
    good = agent_frames.parse_reply(reply("7", result={"items": []}), "7")
    assert good is not None and good.ok and good.result == {"items": []}
    error = {"code": "deadline", "message": "item rng", "running": ["item rng"]}
    bad = agent_frames.parse_reply(reply("7", ok=False, error=error), "7")
    assert bad is not None and not bad.ok
    assert bad.error == agent_frames.AgentFailure(code="deadline", message="item rng")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"  \r\n",
        reply("8"),
        reply("7")[:-9],
        b'{"id":"8","ok":tr' + reply("7"),  # torn, and the answer behind it on the same line
        b"[]",
        b"null",
        b'"7"',
        b"\xff\xfe\x00",
        b'{"id": "7"}',
        b'{"id": 7, "ok": true}',
        b'{"id": "7", "ok": "yes"}',
        b"[" * 100_000,
        b'{"id": "7", "ok": false, "error": "text"}',
    ],
)
def test_what_is_no_answer_to_the_question_is_passed_over(line: bytes) -> None:
    assert agent_frames.parse_reply(line, "7") is None


@given(line=st.binary(max_size=200))
def test_garbage_is_passed_over(line: bytes) -> None:
    assert agent_frames.parse_reply(line, "7") is None


@given(torn=st.binary(max_size=100), cuts=st.lists(st.integers(1, 40), max_size=12))
def test_both_sides_are_in_step_again_after_a_torn_line(torn: bytes, cuts: list[int]) -> None:
    """Whatever precedes a message, in whatever pieces it comes, the other side's splitter finds the message whole."""
    stream = torn + agent_frames.render_request("7", "ping", {}, 1.0)
    splitter, lines, at = guest_frames.Splitter(), [], 0
    for size in [*cuts, len(stream)]:
        lines += splitter.feed(stream[at : at + size])
        at += size
    assert guest_frames.find_object(lines[-1]) == json.loads(
        agent_frames.render_request("7", "ping", {}, 1.0)
    )
    answer = guest_frames.encode({"id": "7", "ok": True, "result": {}})
    found = [agent_frames.parse_reply(line, "7") for line in (torn + answer).split(b"\n")]
    assert [one for one in found if one is not None and one.result == {}]
