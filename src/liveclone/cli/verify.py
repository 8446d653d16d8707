"""verify: check the evidence of a clone, from its file and the public key of the host that made it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import output
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..model.proof import Check

File = Annotated[
    str,
    typer.Argument(
        metavar="[FILE]",
        help="What `show CLONE --evidence` printed; - for standard input.",
        show_default=False,
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help="Public key (PEM) of the host that made it; by default this host's own."
    ),
]
PrintKey = Annotated[bool, typer.Option("--print-key", help="Print this host's public key (PEM) and end.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "verify")(verify)


def verify(cli: Cli, file: File = "", key: Key = None, print_key: PrintKey = False) -> int:
    """Check a clone's evidence, offline. Signatures, and whether the verdict follows from the digests.

    The exit code is 13 if it does not hold.
    """
    from ..engine import proof
    from . import exits

    if print_key:
        return _print_key(cli)
    if not file:
        raise typer.BadParameter("which file? `liveclone show CLONE --evidence` makes one", param_hint="FILE")
    found = proof.verify(file, key)
    if cli.json:
        output.print_json(found)
    else:
        _print(found, quiet=cli.quiet)
    return 0 if found.holds else exits.NOT_PROVEN


def _print_key(cli: Cli) -> int:
    async def work(ctx: Context) -> str:
        from ..engine import proof

        return proof.print_key(ctx)

    key = cli.run(work)
    if cli.json:
        output.print_json({"key": key})
    else:
        typer.echo(key, nl=False)
    return 0


def _print(check: Check, *, quiet: bool) -> None:
    for problem in check.problems:
        output.print_line(problem)
    for finding in check.findings:
        output.print_line(f"the host found: {finding.item}: {finding.reason}")
    if quiet:
        return
    subject = check.subject
    output.print_facts(
        (
            ("machine", f"{subject.name} ({subject.machine})"),
            ("snapshot", check.snapshot),
            ("generation", check.generation),
            ("at", f"{subject.at:%Y-%m-%d %H:%M:%S} UTC"),
            ("new", ", ".join(check.items)),
            ("differs from", ", ".join(["the snapshot", *(one.name for one in check.compared_with)])),
            ("key", check.key),
        )
        if check.is_clone
        else (
            ("machine", f"{subject.name} ({subject.machine})"),
            ("source of", check.snapshot),
            ("renewed", ", ".join(check.items)),
            ("key", check.key),
        )
    )
    output.print_line(f"{subject.name}: the evidence {'holds' if check.holds else 'does NOT hold'}")
