"""Evidence that can be checked elsewhere: records with the signature of the host that made them, and what a check found.

docs/evidence.md describes the JSON of these to those who check it with other tools.
"""

from __future__ import annotations

import datetime
from typing import Any

from .base import Value
from .identity import Finding

ALGORITHM = "ed25519"


class Signature(Value, frozen=True, kw_only=True):
    """A signature over the canonical JSON of what lies beside it; `key` and `value` in base64."""

    algorithm: str
    key: str  # the public key, 32 bytes
    value: str  # 64 bytes


class Record(Value, frozen=True, kw_only=True):
    """One machine's evidence, as it was signed: plain values, since a reader may know fewer fields than the writer."""

    evidence: dict[str, Any]
    signature: Signature


class Proof(Value, frozen=True, kw_only=True):
    """A machine's record, and those of all that it was compared with."""

    subject: Record
    members: tuple[Record, ...]


class Named(Value, frozen=True, kw_only=True):
    """A machine of a proof."""

    machine: str  # id
    name: str
    at: datetime.datetime


class Check(Value, frozen=True, kw_only=True):
    """What a check of a proof found.

    `problems` speak against the records; `findings` are what the host itself held against the machine.
    """

    subject: Named
    snapshot: str
    generation: str
    key: str
    items: tuple[str, ...]  # new in it, required
    compared_with: tuple[Named, ...]
    is_clone: bool  # False: the source of the snapshot, which was renewed and not judged
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]
    holds: bool  # nothing at all was found
