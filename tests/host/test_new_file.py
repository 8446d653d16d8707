"""A new file has its name when it is complete, and not before; nothing else is left, and nothing is replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from liveclone.errors import NotFound, Refused, StoreError
from liveclone.host import new_file


@pytest.fixture(params=["nameless", "hidden"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path, on a file system that has files without a name, and on one that has not."""
    if request.param == "hidden":
        real = os.open

        def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return real(path, flags, *more, **named)

        monkeypatch.setattr(os, "open", refuse)
    return tmp_path / "new"


def test_it_gets_its_name_at_the_end(target: Path) -> None:
    with new_file.open_new(target) as file:
        file.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(target.parent.iterdir()) == [target]


def test_what_fails_leaves_nothing(target: Path) -> None:
    with pytest.raises(StoreError), new_file.open_new(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(KeyboardInterrupt), new_file.open_new(target):
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []


def test_nothing_is_replaced(target: Path) -> None:
    with pytest.raises(Refused), new_file.open_new(target):
        target.write_text("came in between")
    assert target.read_text() == "came in between"
    with pytest.raises(Refused), new_file.open_new(target):
        pytest.fail("it is there already")
    assert list(target.parent.iterdir()) == [target]


def test_a_dangling_link_is_something_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused):
        new_file.check_free(tmp_path / "link")
    with pytest.raises(NotFound):
        new_file.check_free(tmp_path / "no" / "file")
