"""audit: compare all machines of a snapshot's family with one another, now."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

from . import output, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..model.audit import Audit


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "audit")(audit)


def audit(cli: Cli, snapshot: params.Snapshot) -> int:
    """Compare a snapshot's source and clones, each with every other. Fails if two have any value in common.

    Their identity is observed afresh, and each draws random bytes in several ways.
    """
    from ..errors import GuestError
    from . import exits

    async def work(ctx: Context) -> Audit:
        from ..engine import audit as audits

        return await audits.audit(ctx, snapshot)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    elif cli.quiet:
        for one in found.equal:
            output.print_line(f"{one.what}: {one.first} = {one.second}")
    else:
        _print(found)
    return exits.code_of(GuestError("")) if found.equal else 0


def _print(audit: Audit) -> None:
    """Print how many values each pair has in common, then which."""
    from ..identity.compare import is_pair

    common = Counter(frozenset((one.first, one.second)) for one in audit.equal)
    members = audit.members
    rows = []
    for number, row in enumerate(members, 1):
        cells = [common[frozenset((row.name, one.name))] if is_pair(row, one) else "-" for one in members]
        cells[number - 1] = "-"
        rows.append((number, row.name, row.role.value, len(row.digests), *cells))
    output.print_line("values in common:")
    output.print_table(("", "name", "role", "values", *map(str, range(1, len(members) + 1))), rows)
    output.print_line("")
    for one in audit.equal:
        output.print_line(f"{one.what}: {one.first} has the same as {one.second}")
    for left in audit.left_out:
        output.print_line(f"{left.name} was left out: {left.reason}")
    verdict = f"{len(audit.equal)} EQUAL" if audit.equal else "all distinct"
    output.print_line(f"{audit.snapshot_name}: {len(members)} members, {audit.pairs} pairs: {verdict}")
