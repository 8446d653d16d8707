r"""Bytes in, lines out; objects in, bytes out. Knows no descriptor.

One JSON object a line, UTF-8. Both sides write "\n" before and after each object: a line that was torn (the
machine was captured or the host's process died in the middle of it) is ended by the next message's
first byte, is no JSON, and is dropped. Nothing else is needed to be in step again.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIMIT = 4 * 1024 * 1024  # bytes in a line, so that garbage without newline cannot fill the guest's memory


class Splitter:
    """Cuts a stream into lines. Blank lines vanish; lines over the limit are dropped and counted."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.dropped = 0
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their newline."""
        head, *rest = data.split(b"\n")
        self._keep(head)
        lines = []
        for piece in rest:
            if self._size > self._limit:
                self.dropped += 1
            elif self._size:
                lines.append(b"".join(self._parts))
            self._parts = []
            self._size = 0
            self._keep(piece)
        return [line for line in lines if line.strip()]

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self._parts = []  # the size still says that this line is lost
        elif piece:
            self._parts.append(piece)


def encode(message: dict[str, Any]) -> bytes:
    """Return the bytes of one message, newlines included."""
    return b"\n" + json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def find_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `line` holds, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
