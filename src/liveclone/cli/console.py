"""console and logs: what a guest shows on its serial console, live or as it was."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from . import params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "logs", no_json=True)(logs)
    verb(app, "console", no_json=True)(console)


def logs(
    cli: Cli,
    machine: params.Machine,
    qemu: Annotated[
        bool, typer.Option("--qemu", help="The hypervisor's log instead of the console's.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it grows, until the machine stops.")
    ] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", metavar="N", help="Only the last N lines.")] = -1,
) -> None:
    """Print what a machine's console has shown."""

    async def work(ctx: Context) -> None:
        from . import follow as reading

        found = ctx.machines.find(machine)
        log = ctx.layout.machine(found.id) / ("qemu.log" if qemu else "console.log")
        position = await reading.print_log(log, tail)
        if follow:
            await reading.follow(ctx, found, log, position)

    cli.run(work, progress=False)


def console(cli: Cli, machine: params.Machine) -> None:
    """Connect to a guest's console; ctrl-] leaves. Begins with what it has said lately."""
    terminal = sys.stdin.isatty()

    async def work(ctx: Context) -> str:
        from ..engine.execute import find_running
        from ..host import locks
        from . import relay, streams

        found = find_running(ctx, machine)
        async with locks.hold_async(ctx.layout.lock(f"console-{found.id}"), f"console of {found.name}"):
            await streams.write_out(relay.find_recent(ctx.layout.machine(found.id) / "console.log"))
            with streams.raw_terminal() if terminal else contextlib.nullcontext():
                await relay.Relay(ctx, found).carry_out()
        return found.name

    if terminal and not cli.quiet:
        sys.stderr.write("liveclone: ctrl-] leaves the console\n")
    name = cli.run(work, progress=False)
    if terminal and not cli.quiet:
        sys.stderr.write(f"\nliveclone: left the console of {name}; it runs on\n")
