"""clone: start live clones of a snapshot, and say of each whether it is ready and verified, or why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import output, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.clone import Result
    from ..engine.context import Context
    from ..errors import NotFound


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "clone")(clone)


def clone(
    cli: Cli,
    snapshot: params.Snapshot,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            metavar="N",
            help="How many; one, or as many as names, host names or addresses are given.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A clone's name; SNAPSHOT-cN by default. May be given again.", show_default=False),
    ] = None,
    hostname: Annotated[
        list[str] | None,
        typer.Option(
            help="Its host name; its name by default. Given again: the next clone's.", show_default=False
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IPV4",
            help="Its address; the next free one by default. Given again: the next clone's.",
            show_default=False,
        ),
    ] = None,
    ssh_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Public keys that may log in as root, in each clone.", show_default=False
        ),
    ] = None,
    user_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Kept in each clone (/var/lib/liveclone/user-data), and run there if it begins with #!.",
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Told to each clone's programs (/var/lib/liveclone/metadata.json). May be given again.",
            show_default=False,
        ),
    ] = None,
    publish: params.Publish = None,
    network: params.Network = None,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Keep a clone that was not verified, without a NIC.")
    ] = False,
    overcommit: Annotated[
        bool, typer.Option("--overcommit", help="Start them even if the host's memory may not be enough.")
    ] = False,
) -> int:
    """Start live clones of a snapshot. New machines, each verified to be one of its own before it has a network."""
    from . import exits

    names = name or []
    wanted = max(1, len(names), len(hostname or ()), len(address or ())) if count is None else count

    async def work(ctx: Context) -> list[Result]:
        from ..engine import clone as clones
        from ..errors import NotFound

        request = clones.Request(
            snapshot=snapshot,
            count=wanted,
            names=names,
            parameters=params.parse_parameters(wanted, hostname, address, ssh_key, user_data, metadata),
            ports=params.parse_ports(publish),
            network=params.parse_network(network),
            keep_failed=keep_failed,
            overcommit=overcommit,
        )
        try:
            return await clones.start(ctx, request)
        except NotFound as error:
            _explain(ctx, snapshot, error)
            raise

    results = cli.run(work)
    if cli.json:
        output.print_json([_plain(result) for result in results])
    elif cli.quiet:
        for result in results:
            if result.machine is not None:
                output.print_line(result.name)
    else:
        output.print_table(("name", "ready in", "address", "ports", "verified"), map(_row, results))
    failed = [result.error for result in results if result.error is not None]
    for error in failed:
        cli.print_error(error)
    return exits.code_of(failed[0]) if failed else 0


def _explain(ctx: Context, text: str, error: NotFound) -> None:
    """A machine is not cloned directly: say the two commands that do it."""
    from ..errors import LivecloneError

    if error.code != "no-snapshot":
        return
    try:
        machine = ctx.machines.find(text)
    except LivecloneError:
        return
    error.message = f"{machine.name} is a machine; clones are made of a snapshot"
    error.next_step = f"liveclone snapshot {machine.name} --name NAME, then liveclone clone NAME"


def _row(result: Result) -> tuple[object, ...]:
    machine = result.machine
    if machine is None:
        return result.name, "failed", "", "", result.error.code if result.error else ""
    address = machine.nics[0].ip if machine.nics else ""
    items = len(result.evidence.items) if result.evidence else 0
    ready = f"{result.ready_s:.2f} s"
    return result.name, ready, address, params.render_ports(machine.ports), f"verified ({items} items)"


def _plain(result: Result) -> dict[str, Any]:
    from ..model.base import builtins

    evidence = result.evidence
    return {
        "name": result.name,
        "ready_s": round(result.ready_s, 4),
        "verified": evidence is not None and evidence.verified,
        "pooled": result.pooled,
        "steps_ms": result.steps_ms,
        "machine": builtins(result.machine),
        "evidence": builtins(evidence),
        "error": result.error.fields() if result.error else None,
    }
