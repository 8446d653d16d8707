"""Policies: what a finding of the clone-safety scan does to a snapshot. Three are shipped, others are files (docs/scan.md).

failed = "warn"              a check that could not look

[remedies]                   by what can be done about it ...
hook = "allow"
restart = "warn"
accept = "warn"
refuse = "refuse"

[checks]                     ... but of these checks every finding, whatever its remedy
mounts = "refuse"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from ..errors import NotFound, Refused
from ..model.base import Value
from ..model.scan import Action, FailedCheck, Remedy, ScanFinding, Verdict

SHIPPED = Path(__file__).with_name("policies")
DEFAULT = "default"


class Policy(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One policy. `remedies` names all of them; `checks` those that are judged otherwise. `name` is how it was asked for."""

    name: str = ""
    failed: Action
    remedies: dict[Remedy, Action]
    checks: dict[str, Action] = {}

    def judge(
        self, findings: tuple[ScanFinding, ...], failed: tuple[FailedCheck, ...]
    ) -> tuple[Verdict, ...]:
        """Return what the policy makes of each finding and of each check that failed."""
        verdicts = [
            Verdict(action=self.checks.get(found.check, self.remedies[found.remedy]), finding=found)
            for found in findings
        ]
        return (*verdicts, *(Verdict(action=self.failed, finding=check) for check in failed))


def names() -> tuple[str, ...]:
    """Return the names of the shipped policies."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def load(text: str) -> Policy:
    """Return the shipped policy that has this name, or the one in the file with this path.

    Raises:
        NotFound: neither. Refused: it is no policy (code "bad-policy"); the message says why.
    """
    path = SHIPPED / f"{text}.toml" if text in names() else Path(text)
    try:
        policy: Policy = msgspec.convert(_read(path), Policy).replace(name=text)
    except OSError as error:
        raise NotFound(
            f"there is no policy {text!r}",
            code="no-policy",
            tried="reading a policy",
            on=text,
            seen=error.strerror or str(error),
            next_step=f"one of {', '.join(names())}, or the path of a file as docs/scan.md has it",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise _bad(text, str(error)) from error
    missing = [remedy.value for remedy in Remedy if remedy not in policy.remedies]
    if missing:
        raise _bad(text, f"[remedies] does not say what becomes of {', '.join(missing)}")
    return policy


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def _bad(text: str, seen: str) -> Refused:
    return Refused(
        f"{text} is no policy: {seen}",
        code="bad-policy",
        tried="reading a policy",
        on=text,
        seen=seen,
        source_state="not touched",
        next_step="see docs/scan.md; the shipped ones are examples",
    )
