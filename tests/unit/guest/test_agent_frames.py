"""Lines and objects: whatever comes before it, a whole message is understood."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from liveclone.guest import frames

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
objects = st.dictionaries(st.text(max_size=8), scalars | st.lists(scalars, max_size=3), max_size=4)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@settings(max_examples=50)
@given(st.lists(objects, max_size=4), st.lists(st.integers(0, 40), max_size=8))
def test_objects_survive_any_cutting(messages: list[dict[str, object]], sizes: list[int]) -> None:
    splitter = frames.Splitter()
    data = b"".join(frames.encode(message) for message in messages)
    lines = [line for piece in cut(data, sizes) for line in splitter.feed(piece)]
    assert [frames.find_object(line) for line in lines] == messages


@settings(max_examples=50)
@given(st.binary(max_size=200), objects, st.lists(st.integers(0, 40)))
def test_a_message_after_garbage_is_found(
    garbage: bytes, message: dict[str, object], sizes: list[int]
) -> None:
    splitter = frames.Splitter()
    lines = [line for piece in cut(garbage + frames.encode(message), sizes) for line in splitter.feed(piece)]
    assert frames.find_object(lines[-1]) == message


@settings(max_examples=50)
@given(st.data(), objects, objects)
def test_a_torn_message_costs_only_itself(
    data: st.DataObject, torn: dict[str, object], whole: dict[str, object]
) -> None:
    first = frames.encode(torn)
    kept = data.draw(st.integers(0, len(first)))
    lines = frames.Splitter().feed(first[:kept] + frames.encode(whole))
    assert frames.find_object(lines[-1]) == whole
    assert len(lines) <= 2


@settings(max_examples=50)
@given(st.binary())
def test_no_bytes_raise(data: bytes) -> None:
    for line in frames.Splitter().feed(data + b"\n"):
        value = frames.find_object(line)
        assert value is None or isinstance(value, dict)


def test_deep_nesting_is_no_object() -> None:
    assert frames.find_object(b"[" * 1_000_000) is None
    assert frames.find_object(b'{"a":' * 100_000) is None


def test_a_line_over_the_limit_is_dropped_and_counted() -> None:
    splitter = frames.Splitter(limit=10)
    assert splitter.feed(b"0123456789\n") == [b"0123456789"]
    for _ in range(1000):
        assert splitter.feed(b"0123456789") == []
    assert splitter.feed(b'\n{"a":1}\n') == [b'{"a":1}']
    assert splitter.dropped == 1


def test_what_we_write_is_one_line_between_two_newlines() -> None:
    data = frames.encode({"text": "a\nb\u2028ü"})
    assert data[:1] == data[-1:] == b"\n"
    assert data.count(b"\n") == 2
    assert json.loads(data) == {"text": "a\nb\u2028ü"}
