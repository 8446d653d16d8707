"""adopt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import output
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..model.machine import Machine


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    verb(app, "adopt")(adopt)


def adopt(
    cli: Cli,
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Name or UUID of a libvirt domain.")],
    name: Annotated[str, typer.Option(help="Its name here; the domain's by default.")] = "",
) -> None:
    """Make a libvirt domain known, to be cloned. Nothing in it is changed, nor when it is removed again."""

    async def work(ctx: Context) -> Machine:
        from ..engine import adopt as adoption

        return await adoption.adopt(ctx, domain, name)

    machine = cli.run(work, driver="libvirt")
    if cli.json:
        output.print_json(machine)
    elif cli.quiet:
        output.print_line(machine.name)
    else:
        output.print_line(f"{machine.name} is known; next: liveclone snapshot {machine.name}")
