"""pool: machines that wait for clones of a snapshot, so that these are there sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import output, params
from .verb import Cli, make_group, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.pool import Pool


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    group = make_group(help="Keep machines waiting, from which clones start sooner.")
    verb(group, "set")(set_)
    verb(group, "list", "ls")(list_)
    verb(group, "drain")(drain)
    app.add_typer(group, name="pool")


def set_(
    cli: Cli,
    snapshot: params.Snapshot,
    size: Annotated[
        int,
        typer.Argument(metavar="N", help="How many machines are to wait; 0 for none.", show_default=False),
    ],
) -> None:
    """Let N machines wait for clones of a snapshot. Returns when they do; those that are taken are made again."""

    async def work(ctx: Context) -> Pool:
        from ..engine import refill

        return await refill.set_size(ctx, snapshot, size)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    elif cli.quiet:
        output.print_line(found.snapshot)
    else:
        output.print_line(f"{found.snapshot}: {found.ready} of {found.size} machines wait for clones")


def list_(cli: Cli) -> None:
    """List the pools, with the machines that wait in them."""

    async def work(ctx: Context) -> list[Pool]:
        from ..engine import pool

        return pool.list_pools(ctx)

    pools = cli.run(work)
    if cli.json:
        output.print_json(pools)
    elif cli.quiet:
        for one in pools:
            output.print_line(one.snapshot)
    else:
        output.print_table(
            ("snapshot", "size", "ready", "machines"),
            ((one.snapshot, one.size, one.ready, _render(one)) for one in pools),
        )


def drain(cli: Cli, snapshot: params.Snapshot) -> None:
    """End the machines that wait for clones of a snapshot. The pool's size stays: the next clone has it filled again."""

    async def work(ctx: Context) -> int:
        from ..engine import refill

        return await refill.drain(ctx, snapshot)

    ended = cli.run(work)
    if cli.json:
        output.print_json({"snapshot": snapshot, "ended": ended})
    elif not cli.quiet:
        output.print_line(f"{ended} waiting machine{'s' * (ended != 1)} of {snapshot} ended")


def _render(pool: Pool) -> str:
    from ..model.waiting import WaitingState

    return ", ".join(
        machine_id if state is WaitingState.READY else f"{machine_id} ({state.value})"
        for machine_id, state in pool.waiting.items()
    )
