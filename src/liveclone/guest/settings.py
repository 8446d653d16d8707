"""Settings of the kernel that are others for a while: what they were is on file meanwhile, for whoever comes next.

`/run/liveclone/settings.json` is there as long as one is changed. An agent that dies then leaves it to the next one, which
puts back what it says when it starts. A guest that boots has neither the file nor the settings.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

from . import files
from .errors import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STATE = "/run/liveclone/settings.json"


@contextmanager
def changed(wanted: Mapping[str, int | str], root: str = "/") -> Iterator[None]:
    """Let each setting (its path in /proc or /sys) be at most that number, or that text, in the block; one block at a time.

    Raises OSError, with all as it was: one cannot be read or written.
    """
    put_back(root)  # else those of an agent that died here would be taken for what was there
    before = {}
    for path, value in wanted.items():
        with open(_full(root, path), encoding="ascii") as file:
            text = file.read().strip()
        if text != value if isinstance(value, str) else int(text) > value:
            before[path] = text
    state = _full(root, STATE)
    os.makedirs(os.path.dirname(state), exist_ok=True)
    files.replace_file(state, json.dumps(before), 0o600)
    try:
        for path in before:
            _write(root, path, str(wanted[path]))
        yield
    finally:
        put_back(root)


def put_back(root: str = "/") -> None:
    """Make each setting what it was before; mostly there is none."""
    text = files.find_text(_full(root, STATE))
    if text is None:
        return
    for path, value in json.loads(text).items():
        try:
            _write(root, path, value)
        except OSError as error:  # its disk has gone meanwhile; the others count
            log(f"{path} cannot be made {value} again: {error}")
    files.remove(_full(root, STATE))


def _write(root: str, path: str, value: str) -> None:
    with open(_full(root, path), "w", encoding="ascii") as file:
        file.write(value)


def _full(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))
