"""What an operation has done so far, on disk, so that whoever comes after its death can finish or undo it.

`machines/ID/operation.json` exists exactly while an operation is under way. The operation holds the machine's lock, which
the kernel drops when it dies: a journal under a free lock belongs to nobody any more. Nothing here is fsynced: a dead
process loses nothing that it wrote, and a dead host has no machine left to rescue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..host import files
from ..model import base
from ..model.base import Value
from .layout import OPERATION


class Entry(Value, frozen=True, kw_only=True):
    """An operation under way (or interrupted): its name, the last step it began, and what it noted."""

    operation: str
    step: str = "begun"
    facts: dict[str, Any] = {}


class Journal:
    """The journal of one machine."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OPERATION
        self._entry: Entry | None = None

    def read(self) -> Entry | None:
        """Return what is there, or None."""
        try:
            return base.decode(self._path.read_bytes(), Entry, str(self._path))
        except FileNotFoundError:
            return None

    def begin(self, operation: str, **facts: Any) -> None:
        """Start the record of an operation."""
        self._write(Entry(operation=operation, facts=_plain(facts)))

    def note(self, step: str, **facts: Any) -> None:
        """Record that `step` begins, with more facts. Takes well under a millisecond: pause windows call it."""
        assert self._entry is not None, "note before begin"
        self._write(self._entry.replace(step=step, facts=self._entry.facts | _plain(facts)))

    def end(self) -> None:
        """The operation is over, done or undone."""
        self._entry = None
        self._path.unlink(missing_ok=True)

    def _write(self, entry: Entry) -> None:
        self._entry = entry
        files.write_atomic(self._path, msgspec.json.encode(entry), durable=False)


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(facts)
    return plain
