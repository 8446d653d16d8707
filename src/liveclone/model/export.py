"""What an exported snapshot says of itself: its members with their digests, signed by the host that wrote it."""

from __future__ import annotations

import datetime
from typing import Any

from .base import Value
from .proof import Signature

KIND, VERSION = "liveclone-snapshot", 1


class Member(Value, frozen=True, kw_only=True):
    """A file of the archive; `digest` is blake3 in hex."""

    name: str
    size_bytes: int
    digest: str


class Index(Value, frozen=True, kw_only=True):
    """All members but the index itself, in their order."""

    kind: str = KIND
    version: int = VERSION
    exported_at: datetime.datetime
    snapshot: str  # its name where it was taken
    members: tuple[Member, ...]


class SignedIndex(Value, frozen=True, kw_only=True):
    """The archive's first file, `index.json`: the index as plain values, as it was signed."""

    index: dict[str, Any]
    signature: Signature
