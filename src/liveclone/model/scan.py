"""What the clone-safety scan of a guest finds, and what a policy says to it."""

from __future__ import annotations

import datetime
import enum

from .base import Value


class Remedy(enum.Enum):
    """What can be done about a finding."""

    HOOK = "hook"  # an application hook takes care of it
    RESTART = "restart"  # a service is to be started anew in each clone
    ACCEPT = "accept"  # it does no harm where one knows of it
    REFUSE = "refuse"  # two machines must not have it


class Action(enum.Enum):
    """What a policy makes of a finding."""

    ALLOW = "allow"
    WARN = "warn"
    REFUSE = "refuse"


class ScanFinding(Value, frozen=True, kw_only=True, tag_field="kind", tag="finding"):
    """One thing in a guest that is not safe to copy. Holds names, never a secret itself."""

    check: str
    subject: str
    seen: str
    remedy: Remedy
    advice: str


class FailedCheck(Value, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """A check that could not look, so that nothing is known of what it is about."""

    check: str
    error: str


class Verdict(Value, frozen=True, kw_only=True):
    """A finding (or a check that failed) with what the policy makes of it."""

    action: Action
    finding: ScanFinding | FailedCheck


class Scan(Value, frozen=True, kw_only=True):
    """All that the checks found in one machine, judged."""

    machine: str  # id
    name: str
    at: datetime.datetime
    policy: str
    checks: tuple[str, ...]  # those that ran
    verdicts: tuple[Verdict, ...]
    took_ms: float

    @property
    def findings(self) -> tuple[ScanFinding, ...]:
        """What was found."""
        return tuple(v.finding for v in self.verdicts if isinstance(v.finding, ScanFinding))

    @property
    def failed(self) -> tuple[FailedCheck, ...]:
        """The checks that could not look."""
        return tuple(v.finding for v in self.verdicts if isinstance(v.finding, FailedCheck))

    def of(self, action: Action) -> tuple[Verdict, ...]:
        """Return the verdicts with this action."""
        return tuple(verdict for verdict in self.verdicts if verdict.action is action)
