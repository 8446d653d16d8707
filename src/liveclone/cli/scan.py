"""scan: what in a machine is not safe to copy, and whether a policy would take a snapshot of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from . import output, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..model.scan import Scan, Verdict


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "scan")(scan)


def scan(cli: Cli, machine: params.Machine, policy: params.Policy = "default") -> int:
    """Tell what in a machine is not safe to copy. Each finding with what to do about it; nothing is changed.

    The exit code is 3 if the policy would refuse a snapshot.
    """
    from ..errors import Refused
    from ..model.scan import Action
    from . import exits

    async def work(ctx: Context) -> Scan:
        from ..engine import scan as scans

        return await scans.scan(ctx, machine, policy)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    else:
        _print(found, quiet=cli.quiet)
    return exits.code_of(Refused("")) if found.of(Action.REFUSE) else 0


def _print(scan: Scan, *, quiet: bool) -> None:
    from ..model.scan import Action

    if quiet:
        for row in _rows(scan.verdicts):
            output.print_line(" ".join(row[:3]))
        return
    if scan.verdicts:
        print_verdicts(scan.verdicts)
        output.print_line("")
    counted = Counter(verdict.action for verdict in scan.verdicts)
    told = ", ".join(f"{counted[action]} {action.value}" for action in reversed(Action) if counted[action])
    would = "refuse" if counted[Action.REFUSE] else "take"
    output.print_line(
        f"{scan.name}: {told or 'nothing found'}; the policy {scan.policy} would {would} a snapshot"
    )


def print_verdicts(verdicts: Iterable[Verdict]) -> None:
    """Print findings and what a policy makes of them, the worst first."""
    output.print_table(("verdict", "check", "what", "seen", "remedy", "advice"), _rows(verdicts))


def _rows(verdicts: Iterable[Verdict]) -> list[tuple[str, ...]]:
    from ..model.scan import Action, FailedCheck

    rows: list[tuple[str, ...]] = []
    for verdict in verdicts:
        one = verdict.finding
        if isinstance(one, FailedCheck):
            rows.append((verdict.action.value, one.check, "", one.error, "", ""))
        else:
            facts = (one.check, one.subject, one.seen, one.remedy.value, one.advice)
            rows.append((verdict.action.value, *facts))
    return sorted(rows, key=lambda row: [action.value for action in reversed(Action)].index(row[0]))
