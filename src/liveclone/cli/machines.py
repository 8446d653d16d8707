"""run, list, start, stop, restart, remove."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import output, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.remove import RemovedMachine
    from ..engine.views import MachineSummary
    from ..errors import LivecloneError
    from ..model.machine import Machine
    from ..store.objects import Named


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "run")(run)
    verb(app, "list", "ls", "ps")(list_)
    verb(app, "start")(start)
    verb(app, "stop")(stop)
    verb(app, "restart")(restart)
    verb(app, "remove", "rm")(remove)


def run(
    cli: Cli,
    image: params.Image,
    name: Annotated[str, typer.Option(help="Its name; the image's and a number by default.")] = "",
    ram: Annotated[str, typer.Option("--ram", "-m", metavar="SIZE", help="RAM: 512M, 2G.")] = "512M",
    cpus: Annotated[int, typer.Option(help="Processors.")] = 1,
    network: params.Network = None,
    publish: params.Publish = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="Kept with the machine.", show_default=False),
    ] = None,
    no_vmgenid: Annotated[
        bool, typer.Option("--no-vmgenid", help="Without the device that tells a kernel that it is a copy.")
    ] = False,
) -> None:
    """Make a machine from an image and start it. Returns when it answers and has its network."""

    async def work(ctx: Context) -> tuple[MachineSummary, float]:
        from ..engine import run as runs
        from ..engine import views
        from ..units import parse_size

        began = time.monotonic()
        request = runs.Request(
            image=image,
            name=name,
            ram_bytes=parse_size(ram),
            vcpus=cpus,
            network=params.parse_network(network),
            ports=params.parse_ports(publish),
            labels=params.parse_pairs(label, "--label"),
            vmgenid=not no_vmgenid,
        )
        machine = await runs.run(ctx, request)
        return await views.summarize(ctx, machine), time.monotonic() - began

    summary, took_s = cli.run(work)
    if cli.json:
        output.print_json(_plain(summary) | {"ready_s": round(took_s, 3)})
    elif cli.quiet:
        output.print_line(summary.name)
    else:
        from ..units import render_duration

        output.print_line(f"{summary.name} is ready after {render_duration(took_s)}{_where(summary)}")


def list_(cli: Cli) -> None:
    """List machines."""

    async def work(ctx: Context) -> list[MachineSummary]:
        from ..engine import views

        return await views.list_machines(ctx)

    machines = cli.run(work)
    if cli.json:
        output.print_json(machines)
    elif cli.quiet:
        for machine in machines:
            output.print_line(machine.name)
    else:
        output.print_table(
            ("name", "id", "state", "made from", "address", "ports", "age"),
            (
                (m.name, m.id, render_state(m), _origin(m), m.address, params.render_ports(m.ports), _age(m))
                for m in machines
            ),
        )
        for machine in machines:
            if machine.needs_repair and not cli.quiet:
                typer.echo(
                    f"liveclone: {machine.name}: {machine.busy}; liveclone repair settles it", err=True
                )


def start(cli: Cli, machines: params.Machines) -> int:
    """Start stopped machines. They boot from their disks; paused ones go on."""

    async def one(ctx: Context, text: str) -> Machine:
        from ..engine import run as runs

        return await runs.start(ctx, text)

    return _each(cli, machines, one, "started")


def stop(
    cli: Cli,
    machines: params.Machines,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="End the process at once, as pulling the plug.")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--time", "-t", metavar="S", help="How long the guest may take to shut down.")
    ] = 60.0,
) -> int:
    """Shut machines down by their power button."""

    async def one(ctx: Context, text: str) -> Machine:
        from ..engine import run as runs

        return await runs.stop(ctx, text, force=force, deadline_s=seconds)

    return _each(cli, machines, one, "stopped")


def restart(
    cli: Cli,
    machines: params.Machines,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="End the process at once, as pulling the plug.")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--time", "-t", metavar="S", help="How long the guest may take to shut down.")
    ] = 60.0,
) -> int:
    """Stop machines and start them again."""

    async def one(ctx: Context, text: str) -> Machine:
        from ..engine import run as runs

        await runs.stop(ctx, text, force=force, deadline_s=seconds)
        return await runs.start(ctx, text)

    return _each(cli, machines, one, "restarted")


def remove(
    cli: Cli,
    machines: params.Machines,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also those that run.")] = False,
) -> int:
    """Remove machines with their disks. Snapshots of them stay."""

    async def one(ctx: Context, text: str) -> RemovedMachine:
        from ..engine import remove as removals

        return await removals.remove_machine(ctx, text, force=force)

    return _each(cli, machines, one, "removed", side_by_side=False)


def render_state(machine: MachineSummary) -> str:
    """Return the state for people, with what is going on."""
    state = "quarantined" if machine.quarantined else machine.state.value
    return f"{state} ({machine.busy})" if machine.busy and machine.busy != "start" else state


def _each(
    cli: Cli,
    names: Sequence[str],
    one: Callable[[Context, str], Awaitable[Named]],
    done: str,
    *,
    side_by_side: bool = True,
) -> int:
    """Do the same to several machines; one that fails does not keep the others from it."""
    import asyncio

    from ..errors import LivecloneError
    from . import exits

    wanted = list(dict.fromkeys(names))

    async def work(ctx: Context) -> list[Named | LivecloneError]:
        gate = asyncio.Semaphore(4 if side_by_side else 1)

        async def attempt(name: str) -> Named | LivecloneError:
            async with gate:
                try:
                    return await one(ctx, name)
                except LivecloneError as error:
                    return error

        return list(await asyncio.gather(*(attempt(name) for name in wanted)))

    outcomes = cli.run(work)
    failed = [outcome for outcome in outcomes if isinstance(outcome, LivecloneError)]
    if cli.json:
        output.print_json([_outcome(n, o, done) for n, o in zip(wanted, outcomes, strict=True)])
    else:
        for outcome in outcomes:
            if not isinstance(outcome, LivecloneError):
                output.print_line(outcome.name if cli.quiet else f"{outcome.name} {done}")
    for error in failed:
        cli.print_error(error)
    return exits.code_of(failed[0]) if failed else 0


def _outcome(asked: str, outcome: Named | LivecloneError, done: str) -> dict[str, Any]:
    from ..errors import LivecloneError

    if isinstance(outcome, LivecloneError):
        return {"name": asked, "done": "", "error": outcome.fields()}
    return {"name": outcome.name, "id": outcome.id, "done": done, "error": None}


def _plain(value: object) -> dict[str, Any]:
    from ..model.base import builtins

    plain: dict[str, Any] = builtins(value)
    return plain


def _where(machine: MachineSummary) -> str:
    ports = params.render_ports(machine.ports)
    parts = [part for part in (machine.address, ports) if part]
    return ": " + ", ".join(parts) if parts else ""


def _origin(machine: MachineSummary) -> str:
    if machine.domain:
        return "adopted"
    return f"snapshot {machine.clone_of}" if machine.clone_of else machine.image


def _age(machine: MachineSummary) -> str:
    return output.render_age(machine.created_at)
