"""What an audit of a snapshot's family finds: who was asked, and who has a value that another one has too."""

from __future__ import annotations

import datetime
import enum

from .base import Value


class Role(enum.Enum):
    """What a member is to the snapshot."""

    SNAPSHOT = "snapshot"  # the identity that was recorded in it
    SOURCE = "source"
    CLONE = "clone"


class Member(Value, frozen=True, kw_only=True):
    """One member, with a keyed digest of each value; none for what its guest has not."""

    id: str
    name: str
    role: Role
    digests: dict[str, str]


class LeftOut(Value, frozen=True, kw_only=True):
    """A machine of the family that was not asked."""

    name: str
    reason: str


class Equal(Value, frozen=True, kw_only=True):
    """A value that two members have in common."""

    what: str
    first: str  # names
    second: str


class Audit(Value, frozen=True, kw_only=True):
    """All members of a family, each compared with every other."""

    snapshot: str  # id
    snapshot_name: str
    at: datetime.datetime
    members: tuple[Member, ...]
    pairs: int
    equal: tuple[Equal, ...]
    left_out: tuple[LeftOut, ...] = ()
