"""What makes one machine another than its copy, and the record that shows it.

A digest here is always keyed (HMAC-SHA256 under a key that belongs to the snapshot), so evidence can be
compared and kept without holding any secret of the guest.
"""

from __future__ import annotations

import datetime
import enum

from .base import Value


class ItemStatus(enum.Enum):
    """What became of an identity item in one guest."""

    PRESENT = "present"  # observed, not reset
    CHANGED = "changed"
    KEPT = "kept"  # the reset ran, yet the value is the old one
    PENDING = "pending"  # begun; done once the machine has its network, so there is no new value yet
    ABSENT = "absent"  # this guest has no such thing
    SHARED = "shared"  # it exists and cannot be changed here
    FAILED = "failed"
    CONFIGURED = "configured"  # nothing to compare: set as the host asked (the clock), or taken away (leases)


class Generation(Value, frozen=True, kw_only=True):
    """Changes each time a machine becomes a clone, or a source that was cloned."""

    counter: int
    uuid: str


class ItemReport(Value, frozen=True, kw_only=True):
    """What the agent says of one item. `details` are public facts (a fingerprint, a host name), never secrets."""

    item: str
    required: bool
    status: ItemStatus
    before: str = ""
    after: str = ""
    took_ms: float = 0.0
    details: dict[str, str] = {}
    error: str = ""


class Finding(Value, frozen=True, kw_only=True):
    """One reason why evidence was not accepted. `against` names the machine or snapshot it equals, if any."""

    item: str
    reason: str
    against: str = ""


class Cards(Value, frozen=True, kw_only=True):
    """The MACs of a machine's NICs: those it was given, those its guest shows, those the hypervisor sees in use."""

    given: tuple[str, ...]
    guest: tuple[str, ...]
    host: tuple[str, ...]


class Evidence(Value, frozen=True, kw_only=True):
    """The record of one machine's new identity, as the host judged it, with all that it was judged by."""

    machine: str  # id
    name: str
    snapshot: str  # id
    generation: Generation
    items: tuple[ItemReport, ...]
    findings: tuple[Finding, ...] = ()
    snapshot_items: tuple[ItemReport, ...] = ()  # what it was compared with, digests only; empty for a source
    compared_with: tuple[str, ...] = ()  # ids of the siblings (and of the source) it was compared with
    gone: tuple[str, ...] = ()  # those of them that had been removed by then
    cards: Cards | None = None  # None before it is connected
    at: datetime.datetime
    took_ms: float = 0.0

    @property
    def verified(self) -> bool:
        """Whether nothing was found against it."""
        return not self.findings
