"""agent: install, remove, status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import exits, output, params
from .verb import Cli, make_group, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..model.agent import AgentStatus, GuestPort


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    group = make_group(help="Put the agent into a machine that nobody prepared, while it runs.")
    verb(group, "install")(install)
    verb(group, "remove", "rm")(remove)
    verb(group, "status")(status)
    app.add_typer(group, name="agent")


def install(
    cli: Cli,
    machine: params.Machine,
    persistent: Annotated[
        bool,
        typer.Option("--persistent", help="Also into its definition, for when it starts from cold again."),
    ] = False,
) -> None:
    """Install the agent, or bring it up to date, through the QEMU guest agent that the machine has."""

    async def work(ctx: Context) -> AgentStatus:
        from ..engine import install as installation

        return await installation.install(ctx, machine, persistent=persistent)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    elif cli.quiet:
        output.print_line(found.name)
    else:
        output.print_line(
            f"the agent {found.agent} answers in {found.name}; next: liveclone snapshot {found.name}"
        )
        if not all(port.persistent for port in found.ports):
            output.print_line(
                f"its ports go when {found.name} is shut down; --persistent puts them into its definition"
            )


def remove(cli: Cli, machine: params.Machine) -> None:
    """Take away what install has brought. An agent that came with an image stays."""

    async def work(ctx: Context) -> AgentStatus:
        from ..engine import install as installation

        return await installation.remove(ctx, machine)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    elif cli.quiet:
        output.print_line(found.name)
    elif found.stock_problem:
        output.print_line(
            f"the ports are gone; an agent in {found.name} stays, idle, since there is no "
            f"QEMU guest agent to take it out with: {found.stock_problem}"
        )
    elif found.agent:
        output.print_line(f"{found.name} has its agent from elsewhere: it stays")
    else:
        output.print_line(f"{found.name} is without the agent")


def status(cli: Cli, machine: params.Machine) -> int:
    """Tell whether the agent answers, which ports it has, and whether it could be installed.

    The exit code is 9 if it does not answer.
    """
    from ..errors import GuestError

    async def work(ctx: Context) -> AgentStatus:
        from ..engine import install as installation

        return await installation.status(ctx, machine)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    elif cli.quiet:
        output.print_line(found.agent or "none")
    else:
        ports = "; ".join(f"{port.name} ({_say(port)})" for port in found.ports)
        output.print_line(found.name)
        output.print_facts(
            (
                ("agent", f"{found.agent}, Python {found.python}" if found.agent else found.problem),
                ("ports", ports or "none"),
                ("stock agent", found.stock or found.stock_problem),
                ("next", _advise(found)),
            )
        )
    return exits.code_of(GuestError("")) if found.problem else 0


def _say(port: GuestPort) -> str:
    where = "until it is shut down" if not port.persistent else "" if port.live else "from its next start on"
    return ", ".join(filter(None, ("added" if port.added else "its own", where)))


def _advise(found: AgentStatus) -> str:
    if not found.problem:
        return ""
    if not found.stock_problem:
        return f"liveclone agent install {found.name}"
    return "install qemu-guest-agent in the guest, then liveclone agent install (docs/libvirt.md)"
