"""doctor, repair, version."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Annotated

import typer

from . import complete, exits, output
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.doctor import Report

_MARKS = {"ok": "ok", "warning": "warning", "problem": "problem"}


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "doctor")(doctor)
    verb(app, "repair")(repair)
    verb(app, "version")(version)


def doctor(cli: Cli) -> int:
    """Look at this host. Acceleration, QEMU, memory, folders, limits; what is missing, and what to do about it."""
    from ..engine import settings
    from ..errors import Unsupported
    from ..store.layout import Layout
    from . import loop

    chosen = settings.read()

    async def work() -> Report:
        from ..engine import doctor as examination

        return await examination.examine(chosen.home, chosen.hot)

    report = loop.run(work())
    if cli.json:
        output.print_json(report)
    elif not cli.quiet:
        from ..engine.host_findings import Verdict

        output.print_table(
            ("what", "verdict", "seen"), ((f.name, _MARKS[f.verdict.value], f.seen) for f in report.findings)
        )
        namespace = Layout(chosen.home, chosen.hot).namespace
        output.print_line("")
        output.print_line(f"liveclone {report.version}; network namespace of this home: {namespace}")
        for finding in (*report.of(Verdict.PROBLEM), *report.of(Verdict.WARNING)):
            if finding.next_step:
                output.print_line(f"{finding.verdict.value}: {finding.name}: {finding.next_step}")
        output.print_line("machines can run here" if report.usable else "machines cannot run here")
    return 0 if report.usable else exits.code_of(Unsupported(""))


def repair(
    cli: Cli,
    machine: Annotated[
        str,
        typer.Argument(
            metavar="[MACHINE]", help="Only this one; all by default.", autocompletion=complete.machines
        ),
    ] = "",
) -> None:
    """Settle what killed commands have left. Sources run again, half-made things go."""

    async def work(ctx: Context) -> tuple[list[str], list[str]]:
        from ..engine import repair as repairs
        from ..engine import seal

        if machine:
            return await repairs.settle(ctx, machine), []
        return await repairs.settle_all(ctx), [snapshot.name for snapshot in seal.start_again(ctx)]

    settled, sealing = cli.run(work)
    if cli.json:
        output.print_json({"settled": settled, "sealing": sealing})
        return
    for name in settled:
        output.print_line(name if cli.quiet else f"{name}: an interrupted operation was settled")
    if not cli.quiet:
        for name in sealing:
            output.print_line(f"{name}: is being sealed in the background")
        if not settled and not sealing:
            output.print_line("nothing to repair")


def version(cli: Cli) -> None:
    """Print the version."""
    from .. import __version__

    if cli.json:
        output.print_json({"version": __version__, "python": platform.python_version()})
    else:
        output.print_line(f"liveclone {__version__}")
