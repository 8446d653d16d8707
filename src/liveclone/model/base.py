"""What all our values have in common: frozen, keyword-only, strict about unknown fields in old manifests.

`decode` and `encode` are the only way from bytes to values and back, so that a manifest, the output of
`--json` and the wire agree. Times are ISO 8601 in UTC; sizes are bytes; durations carry their unit.
"""

from __future__ import annotations

import datetime
from typing import Any, TypeVar

import msgspec

from ..errors import Corrupt

T = TypeVar("T")


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of every value."""

    def replace(self, **changes: Any) -> Any:
        """Return a copy with `changes` applied."""
        return msgspec.structs.replace(self, **changes)


def now() -> datetime.datetime:
    """Return the current time, UTC, whole microseconds."""
    return datetime.datetime.now(datetime.UTC)


def encode(value: object) -> bytes:
    """Return `value` as indented JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def builtins(value: object) -> Any:
    """Return `value` as plain dicts, lists, strings and numbers (for --json)."""
    return msgspec.to_builtins(value)


def decode(data: bytes, kind: type[T], on: str) -> T:
    """Return the value that `data` holds.

    Raises:
        Corrupt: the bytes are not JSON, or not of this kind. `on` names the file or message.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(
            f"{on} cannot be read as {kind.__name__.lower()}",
            code="bad-manifest",
            tried="reading a manifest",
            on=on,
            seen=str(error),
            next_step="restore the file from a copy, or remove the object it belongs to",
        ) from error


def convert(value: object, kind: type[T], on: str) -> T:
    """Return the value that plain dicts, lists, strings and numbers make up; raises as `decode` does."""
    return decode(msgspec.json.encode(value), kind, on)
