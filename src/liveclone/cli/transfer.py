"""snapshot export, snapshot import: a snapshot as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import output, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.export import Exported
    from ..engine.importing import Imported
    from ..engine.views import SnapshotSummary


def register(group: typer.Typer) -> None:
    """Add the verbs of this file to the group `snapshot`."""
    verb(group, "export")(export)
    verb(group, "import")(import_)


def export(
    cli: Cli,
    snapshot: params.Snapshot,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; there must be none.")],
    i_know: Annotated[
        bool, typer.Option("--i-know", help="Also if it is not proven that it holds no secrets.")
    ] = False,
) -> None:
    """Write a snapshot into one file, for another host or other people. It must be scrubbed, with nothing found.

    The file is a tar, compressed by zstd, and signed by this host.
    """

    async def work(ctx: Context) -> Exported:
        from ..engine import export as exports

        return await exports.export(ctx, snapshot, file, i_know=i_know)

    written = cli.run(work)
    if cli.json:
        output.print_json(written)
    elif cli.quiet:
        output.print_line(written.file)
    else:
        from ..units import render_size

        sizes = f"{render_size(written.size_bytes)} for {render_size(written.content_bytes)}"
        output.print_line(f"{written.snapshot} is in {written.file}: {sizes}")
    if written.unproven:
        output.print_warning(f"not proven: {written.unproven}")


def import_(
    cli: Cli,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `snapshot export` wrote.")],
    name: Annotated[str, typer.Option(help="Its name here; its own by default.")] = "",
) -> None:
    """Make a snapshot of an exported one. Everything in the file is checked before.

    Says whose key signed it. Whether you trust them is for you to decide: a snapshot is a running machine.
    """

    async def work(ctx: Context) -> tuple[Imported, SnapshotSummary]:
        from ..engine import importing, views

        imported = await importing.import_(ctx, file, name)
        return imported, views.summarize_snapshot(ctx, imported.snapshot, 0)

    imported, summary = cli.run(work)
    if cli.json:
        output.print_json({"snapshot": summary, "key": imported.key, "own_key": imported.is_own})
    elif cli.quiet:
        output.print_line(summary.name)
    else:
        whose = "this host" if imported.is_own else f"the host with the key {imported.key}"
        output.print_line(f"{summary.name} is imported; it was exported by {whose}")
