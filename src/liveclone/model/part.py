"""A file of a snapshot."""

from __future__ import annotations

from .base import Value


class Part(Value, frozen=True, kw_only=True):
    """A file of a snapshot. `digest` is blake3 in hex; empty until computed."""

    file: str  # name inside the snapshot's folder
    size_bytes: int
    digest: str = ""
