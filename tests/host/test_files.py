"""Files that are there whole or not at all, and large sparse ones."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liveclone.errors import StoreError
from liveclone.host import files
from liveclone.units import KIB, MIB, PAGE


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new" * 100_000, mode=0o644)
    assert path.read_bytes() == b"new" * 100_000
    assert path.stat().st_mode & 0o777 == 0o644
    assert [found.name for found in tmp_path.iterdir()] == ["manifest.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(StoreError) as caught:
        files.write_atomic(path, b"new")
    assert caught.value.on == str(path)
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(StoreError):
        files.write_atomic(tmp_path / "none" / "x", b"new")


def test_a_tree_is_removed_and_may_be_gone_already(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    (tmp_path / "kept").touch()
    files.remove_tree(tmp_path / "a")
    files.remove_tree(tmp_path / "a")
    assert [found.name for found in tmp_path.iterdir()] == ["kept"]


def test_a_second_name_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    files.hard_link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    with pytest.raises(StoreError):
        files.hard_link(tmp_path / "a", tmp_path / "b")


def make_sparse(path: Path, size: int, pieces: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
            content[offset : offset + len(data)] = data
    return bytes(content)


pieces = st.lists(
    st.tuples(
        st.integers(0, 63).map(lambda block: block * 4 * KIB + block % 3),
        st.sampled_from([b"x", b"ab" * 3000, bytes(70_000), b"\0" * 5000 + b"y"]),
    ),
    max_size=4,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=pieces, tail=st.integers(0, 5000))
def test_a_copy_is_the_same_bytes(tmp_path: Path, pieces: list[tuple[int, bytes]], tail: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.unlink(missing_ok=True)
    content = make_sparse(source, 63 * 4 * KIB + 80_000 + tail, pieces)
    files.copy_sparse(source, target)
    assert target.read_bytes() == content
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_holes_and_zeros_take_no_room(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_sparse(source, 64 * MIB, [(MIB, bytes(MIB)), (40 * MIB, b"data")])
    told: list[float] = []
    files.copy_sparse(source, target, told.append, mode=0o400)
    assert target.stat().st_size == 64 * MIB
    assert target.stat().st_blocks * 512 <= 128 * KIB
    assert target.stat().st_mode & 0o777 == 0o400
    assert told == sorted(told) and all(0 < fraction <= 1 for fraction in told)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=pieces, hole=st.sampled_from([0, 4 * KIB, MIB]))
def test_data_is_read_in_whole_pages_without_long_holes(
    tmp_path: Path, pieces: list[tuple[int, bytes]], hole: int
) -> None:
    path = tmp_path / "sparse"
    size = 2 * MIB + PAGE
    content = make_sparse(path, size, [(offset + hole, data) for offset, data in pieces])
    read = bytearray(size)
    done = total = 0
    with path.open("rb") as file:
        for offset, data in files.read_data(file.fileno(), size):
            assert offset % PAGE == len(data) % PAGE == 0 and data and offset >= done
            read[offset : offset + len(data)] = data
            done, total = offset + len(data), total + len(data)
    same = read == content
    assert same
    assert total <= path.stat().st_blocks * 512 + (len(pieces) + 1) * 64 * KIB


@given(
    edges=st.lists(st.integers(0, 1000 * KIB), max_size=12, unique=True),
    size=st.integers(251, 260).map(lambda pages: pages * PAGE),
)
def test_reads_take_in_all_data_of_a_file_system_with_small_blocks(edges: list[int], size: int) -> None:
    edges = sorted(edges)[: len(edges) // 2 * 2]
    ranges = [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    reads = [read for read in files.plan_reads(ranges, size) if read[0] < read[1]]
    assert all(begin % PAGE == end % PAGE == 0 and end <= size for begin, end in reads)
    assert all(one[1] + 60 * KIB < other[0] for one, other in itertools.pairwise(reads))
    for start, length in ranges:
        assert any(begin <= start and start + length <= end for begin, end in reads)


def test_a_copy_that_fails_leaves_no_target(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_sparse(source, MIB, [(0, b"x")])

    def fail(fraction: float) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError) as caught:
        files.copy_sparse(source, tmp_path / "target", fail)
    assert caught.value.code == "disk-full"
    assert "df -h" in caught.value.next_step
    assert not (tmp_path / "target").exists()
    with pytest.raises(StoreError):
        files.copy_sparse(tmp_path / "none", tmp_path / "target")


def test_an_existing_target_is_not_overwritten(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(StoreError):
        files.copy_sparse(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EACCES, "no-permission"),
        (errno.EXDEV, "two-file-systems"),
        (errno.EIO, "store"),
    ],
)
def test_the_usual_failures_are_told_apart(tmp_path: Path, number: int, code: str) -> None:
    error = files.explain(OSError(number, os.strerror(number)), "writing a file", tmp_path / "x")
    assert error.code == code
    assert error.next_step and os.strerror(number) in error.message
