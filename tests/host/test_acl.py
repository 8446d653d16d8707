"""Access control lists, judged by the kernel: a process of that user tries."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from liveclone.host import acl

STRANGER, OTHER = 54321, 54322  # no user of any system
TRY = {"read": ': < "$1"', "write": ': >> "$1"', "list": "ls . > /dev/null"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that only its owner may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    inner = tmp_path / "inner"
    inner.mkdir(mode=0o700)
    try:
        acl.allow(inner, 0, acl.PASS)
    except OSError as error:
        pytest.skip(f"no lists here: {error}")
    return inner


def can(user: int, what: str, path: Path) -> bool:
    """Tell whether a process of that user alone, started in its folder, can "read" or "write" it, or "list" the folder."""
    command = ["sh", "-c", TRY[what], "sh", path.name]
    done = subprocess.run(
        command,
        cwd=path.parent,
        user=user,
        group=user,
        extra_groups=[],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or "ermission denied" in done.stderr, done.stderr
    return done.returncode == 0


def test_one_user_may_and_nobody_else(folder: Path) -> None:
    file = folder / "layer"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    acl.allow(folder, STRANGER, acl.PASS)
    acl.allow(file, STRANGER, acl.READ)
    assert can(STRANGER, "read", file)
    assert not can(STRANGER, "write", file)
    assert not can(STRANGER, "list", file)
    assert not can(OTHER, "read", file)
    acl.allow(file, STRANGER, acl.WRITE)
    assert can(STRANGER, "write", file)


def test_what_is_allowed_already_is_not_written_again(folder: Path) -> None:
    file = folder / "layer"
    file.touch(0o600)
    acl.allow(file, STRANGER, acl.READ)
    before = file.stat().st_ctime_ns
    acl.allow(file, STRANGER, acl.READ)
    assert file.stat().st_ctime_ns == before


def test_what_a_mode_took_from_all_one_gets_back_alone(folder: Path) -> None:
    acl.allow(folder, STRANGER, acl.PASS)
    acl.allow(folder, OTHER, acl.PASS)
    file = folder / "layer"
    file.touch(0o600)
    acl.allow(file, OTHER, acl.READ | acl.WRITE)
    acl.allow(file, STRANGER, acl.READ)
    file.chmod(0o400)
    assert not can(STRANGER, "read", file)
    acl.allow(file, STRANGER, acl.READ)
    assert can(STRANGER, "read", file)
    assert not can(OTHER, "read", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o440


def test_who_may_pass(folder: Path) -> None:
    nobody: frozenset[int] = frozenset()
    assert not acl.may_pass(folder, STRANGER, nobody)
    acl.allow(folder, STRANGER, acl.PASS)
    assert acl.may_pass(folder, STRANGER, nobody)
    assert not acl.may_pass(folder, OTHER, nobody)
    folder.chmod(0o700)
    assert not acl.may_pass(folder, STRANGER, nobody)
    folder.chmod(0o701)
    assert acl.may_pass(folder, OTHER, nobody)
    assert not acl.may_pass(folder, OTHER, frozenset({os.getegid()}))  # the group is named, and barred
