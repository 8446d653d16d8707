"""The leaves: sizes and durations as people write them, names and identifiers, the tree of errors, named points."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone import errors, ids, trace, units
from liveclone.errors import Refused


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512M", 512 * units.MIB),
        ("2GiB", 2 * units.GIB),
        ("1.5g", 1536 * units.MIB),
        ("4096", 4096),
        (" 10 kb ", 10 * units.KIB),
        ("1T", 1024 * units.GIB),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "1.5", "0.1k", "5 apples", "1e9", "NaN", "M", "٣"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    if text == "٣":  # a digit to Unicode; whether it counts is not worth a rule
        assert units.parse_size(text) == 3
        return
    with pytest.raises(Refused) as refused:
        units.parse_size(text)
    assert refused.value.code == "bad-size"
    assert refused.value.next_step


@given(st.integers(1, 1 << 50))
def test_a_plain_number_of_bytes_is_itself(size_bytes: int) -> None:
    assert units.parse_size(str(size_bytes)) == size_bytes


@given(st.integers(1, 1023), st.sampled_from([units.KIB, units.MIB, units.GIB]))
def test_what_is_shown_can_be_read_again(count: int, factor: int) -> None:
    assert units.parse_size(units.render_size(count * factor)) == count * factor


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00085, "850 µs"),
        (0.0214, "21.4 ms"),
        (3.2, "3.2 s"),
        (250, "4 min 10 s"),
        (3600, "1 h 0 min"),
        (7325, "2 h 2 min"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert units.render_duration(seconds) == text


@pytest.mark.parametrize("name", ["a", "web-1", "0", "x" * 63])
def test_a_label_is_a_name(name: str) -> None:
    assert ids.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x",
        "/etc",
        ".",
        "a/b",
        "-a",
        "a-",
        "A",
        "a b",
        "a\n",
        "a\0b",
        "ä",
        "x" * 64,
        "x" * 300,
        "--help",
        "a_b",
    ],
)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(Refused) as refused:
        ids.check_name(name, "snapshot's name")
    assert refused.value.code == "bad-name"
    assert "snapshot's name" in refused.value.message
    assert len(refused.value.message) < 120


@given(st.text())
def test_whatever_passes_is_one_plain_path_component(name: str) -> None:
    try:
        ids.check_name(name)
    except Refused:
        return
    assert Path("/x", name).name == name
    assert name.isascii()
    assert 1 <= len(name) <= 63


def test_identifiers_are_names_and_differ() -> None:
    many = {ids.new_id() for _ in range(1000)}
    assert len(many) == 1000
    assert all(ids.is_id(one) and ids.check_name(one) == one for one in many)
    assert not ids.is_id("0" * 11)
    assert not ids.is_id("0" * 12 + "\n")
    assert not ids.is_id("G" * 12)


def classes() -> list[type[errors.LivecloneError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, errors.LivecloneError)]


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in classes()]
    assert len(codes) == len(set(codes))
    assert len(codes) > 10
    assert all(issubclass(kind, errors.LivecloneError) for kind in classes())


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    assert all(kind.__name__ in drawn for kind in classes())


def test_an_error_tells_what_it_was_told_and_nothing_else() -> None:
    error = errors.Conflict("the name is taken", code="name-taken", on="web", next_step="take another")
    assert error.fields() == {
        "error": "name-taken",
        "kind": "Conflict",
        "message": "the name is taken",
        "on": "web",
        "next_step": "take another",
    }
    assert str(error) == "the name is taken"
    assert errors.Conflict("busy").code == "conflict"


def run_with_fault(fault: str, trace_file: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = (
        "from liveclone import trace; trace.at('a.one'); trace.at('a.two'); trace.at('a.two'); print('end')"
    )
    environment = os.environ | {"LIVECLONE_FAULT": fault, "LIVECLONE_TRACE": str(trace_file or "")}
    environment["PYTHONPATH"] = str(Path(trace.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_a_named_point_kills_raises_or_does_nothing(tmp_path: Path) -> None:
    assert run_with_fault("", tmp_path / "points").stdout == "end\n"
    assert (tmp_path / "points").read_text() == "a.one\na.two\na.two\n"
    assert run_with_fault("b.other=kill").stdout == "end\n"
    assert run_with_fault("a.two=kill").returncode == -signal.SIGKILL
    assert run_with_fault("a.one=exit").returncode == 70
    assert "stopped by request at a.two" in run_with_fault("a.two=raise").stderr


def test_a_named_point_waits_for_a_fifo(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = "from liveclone import trace; trace.at('a.one'); print('end')"
    environment = os.environ | {"LIVECLONE_FAULT": f"a.one=wait:{fifo}", "LIVECLONE_TRACE": ""}
    environment["PYTHONPATH"] = str(Path(trace.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        with fifo.open("wb"):  # opens when the child has reached the point, and not before
            assert child.poll() is None
        assert child.communicate(timeout=20)[0] == "end\n"
