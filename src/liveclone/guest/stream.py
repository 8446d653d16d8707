"""A job's output that has been read and may not have arrived at the host yet."""

from __future__ import annotations

from .errors import CallError

BUFFER_BYTES = 1024 * 1024
REPLY_BYTES = 256 * 1024  # of one stream in one reply; in base64 two of them are far below a line's limit


class Stream:
    """Output read so far and not yet known to have arrived: bytes `start` to `end` of the stream."""

    def __init__(self) -> None:
        self.start = 0
        self._data = bytearray()

    @property
    def end(self) -> int:
        return self.start + len(self._data)

    @property
    def full(self) -> bool:
        return len(self._data) >= BUFFER_BYTES

    def append(self, data: bytes) -> None:
        self._data += data

    def forget(self) -> None:
        """Drop everything: nobody will ask for it."""
        self.start = self.end
        self._data.clear()

    def take(self, offset: int) -> bytes:
        """Forget what lies before `offset`, and return what follows it, as much as a reply carries."""
        if not self.start <= offset <= self.end:
            raise CallError("bad-offset", f"offset {offset} is not within {self.start} to {self.end}")
        del self._data[: offset - self.start]
        self.start = offset
        return bytes(self._data[:REPLY_BYTES])
