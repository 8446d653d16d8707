"""snapshot: create (also its short form), list, show, remove, seal. Others of the group are in `transfer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from . import complete, output, params, transfer
from .prove import print_proof
from .verb import Cli, make_group, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.snapshot import Scrubbing
    from ..engine.views import SnapshotDetail, SnapshotSummary
    from ..errors import LivecloneError


class ShortForm(TyperGroup):
    """`snapshot MACHINE` means `snapshot create MACHINE`. A machine called "list" needs the long form."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["create", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        every = super().shell_complete(ctx, "")  # never empty, and says of what kind the answer is
        names = [type(every[0])(name, help=words) for name, words in complete.machines(incomplete)]
        return super().shell_complete(ctx, incomplete) + names


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    group = make_group(
        cls=ShortForm,
        help="Take live snapshots, and look after them. `snapshot MACHINE` is short for `snapshot create MACHINE`.",
        subcommand_metavar="MACHINE | COMMAND ...",
    )
    verb(group, "create")(create)
    verb(group, "list", "ls")(list_)
    verb(group, "show", "inspect")(show)
    verb(group, "remove", "rm")(remove)
    verb(group, "seal")(seal)
    transfer.register(group)
    app.add_typer(group, name="snapshot")


def create(
    cli: Cli,
    machine: params.Machine,
    name: Annotated[str, typer.Option(help="Its name; the machine's and a number by default.")] = "",
    method: Annotated[
        Literal["handover", "background", "stream"] | None,
        typer.Option(
            metavar="handover|background|stream",
            help="How the memory is captured; by default what the machine's memory allows best.",
            show_default=False,
        ),
    ] = None,
    wait_sealed: Annotated[
        bool, typer.Option("--wait-sealed", help="Return only when it would survive a reboot of the host.")
    ] = False,
    policy: params.Policy = "default",
    keep_overlay: Annotated[
        bool,
        typer.Option(
            "--keep-overlay",
            help="Leave an adopted machine on the overlays beside its disks: they are not committed back.",
        ),
    ] = False,
    scrub: Annotated[
        bool,
        typer.Option(
            "--scrub", help="Take secrets out of the guest before, put them back after, and prove it."
        ),
    ] = False,
    scrub_path: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="With --scrub: a file or folder of the guest that is secret, besides the known ones. May be given again.",
            show_default=False,
        ),
    ] = None,
    scrub_unit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="UNIT",
            help="With --scrub: a systemd unit that stands still meanwhile, since it knows secrets. May be given again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Take a live snapshot of a running machine. Returns when clones can start; the machine runs on.

    What is not safe to copy in it is looked for first (as `scan` does), and the policy may refuse.
    """

    async def work(ctx: Context) -> SnapshotSummary:
        from ..engine import snapshot, views
        from ..model.snapshot import CaptureMethod

        request = snapshot.Request(
            machine=machine,
            name=name,
            method=CaptureMethod(method) if method else None,
            wait_sealed=wait_sealed,
            policy=policy,
            scrub=_scrubbing(scrub, scrub_path or (), scrub_unit or ()),
            keep_overlay=keep_overlay,
        )
        taken = await snapshot.take(ctx, request)
        return views.summarize_snapshot(ctx, taken, 0)

    summary = cli.run(work)
    if cli.json:
        output.print_json(summary)
    elif cli.quiet:
        output.print_line(summary.name)
    else:
        from ..units import render_duration

        words = "sealed" if wait_sealed else "clones can start; sealing goes on in the background"
        pause = render_duration(summary.pause_ms / 1000)
        output.print_line(f"{summary.name}: {summary.source} stood still for {pause}; {words}")
        if summary.scrub is not None:
            print_proof(summary.scrub)
    if not cli.json:
        for warning in summary.warnings:
            output.print_warning(warning)
        if summary.unsafe:
            things = f"{summary.unsafe} thing{'s' * (summary.unsafe != 1)}"
            output.print_warning(
                f"not safe to copy unthinkingly: {things} in {summary.source}; liveclone snapshot show {summary.name}"
            )


def _scrubbing(wanted: bool, paths: Sequence[str], units: Sequence[str]) -> Scrubbing | None:
    from ..engine.snapshot import Scrubbing
    from ..errors import Refused

    if not wanted and (paths or units):
        raise Refused(
            "--scrub-path and --scrub-unit mean nothing without --scrub",
            code="no-scrub",
            tried="reading the options",
            next_step="add --scrub",
        )
    return Scrubbing(paths=tuple(paths), units=tuple(units)) if wanted else None


def list_(cli: Cli) -> None:
    """List snapshots."""

    async def work(ctx: Context) -> list[SnapshotSummary]:
        from ..engine import views

        return views.list_snapshots(ctx)

    snapshots = cli.run(work)
    if cli.json:
        output.print_json(snapshots)
    elif cli.quiet:
        for one in snapshots:
            output.print_line(one.name)
    else:
        from ..units import render_size

        output.print_table(
            ("name", "id", "state", "source", "ram", "on disk", "on tmpfs", "pause", "clones", "age"),
            (
                (
                    *(s.name, s.id, s.busy or s.state.value, s.source, render_size(s.ram_bytes)),
                    *(render_size(s.disk_used_bytes), render_size(s.hot_used_bytes), f"{s.pause_ms:.1f} ms"),
                    *(s.clones, output.render_age(s.created_at)),
                )
                for s in snapshots
            ),
        )


def show(cli: Cli, snapshot: params.Snapshot) -> None:
    """Show all that is known of a snapshot."""
    from .show import print_snapshot

    async def work(ctx: Context) -> SnapshotDetail:
        from ..engine import views

        return views.show_snapshot(ctx, snapshot)

    detail = cli.run(work)
    if cli.json:
        output.print_json(detail)
    else:
        print_snapshot(detail)


def remove(cli: Cli, snapshots: params.Snapshots) -> int:
    """Remove snapshots. Machines cloned from them run on; disk layers that they stand on stay as long as they do."""
    from ..errors import LivecloneError
    from . import exits

    async def work(ctx: Context) -> list[tuple[str, list[str], LivecloneError | None]]:
        from ..engine import remove as removals

        done: list[tuple[str, list[str], LivecloneError | None]] = []
        for text in dict.fromkeys(snapshots):
            try:
                removed = await removals.remove_snapshot(ctx, text)
                done.append((removed.name, list(removed.run_on), None))
            except LivecloneError as error:
                done.append((text, [], error))
        return done

    outcomes = cli.run(work)
    if cli.json:
        output.print_json(
            [
                {
                    "name": name,
                    "done": "" if e else "removed",
                    "run_on": clones,
                    "error": e.fields() if e else None,
                }
                for name, clones, e in outcomes
            ]
        )
    failed = [error for _, _, error in outcomes if error]
    for name, clones, error in outcomes:
        if not error and not cli.json:
            still = f"; {', '.join(clones)} stay" if clones and not cli.quiet else ""
            output.print_line(name if cli.quiet else f"{name} removed{still}")
    for error in failed:
        cli.print_error(error)
    return exits.code_of(failed[0]) if failed else 0


def seal(cli: Cli, snapshot: params.Snapshot) -> None:
    """Wait until a snapshot is sealed. Durable, with the digest of every part; begins anew if that was cut short."""

    async def work(ctx: Context) -> SnapshotSummary:
        from ..engine import seal, views

        sealed = await seal.finish(ctx, ctx.snapshots.find(snapshot))
        return views.show_snapshot(ctx, sealed.id).summary

    summary = cli.run(work)
    if cli.json:
        output.print_json(summary)
    else:
        output.print_line(summary.name if cli.quiet else f"{summary.name} is sealed")
