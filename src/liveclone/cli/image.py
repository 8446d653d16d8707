"""image: build, import, list, show, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import complete, output, params
from .verb import Cli, make_group, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..errors import LivecloneError
    from ..model.image import Image


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    group = make_group(
        help="Make guest images, and look after them. Machines boot from them.",
    )
    verb(group, "build")(build)
    verb(group, "import")(import_)
    verb(group, "list", "ls")(list_)
    verb(group, "show", "inspect")(show)
    verb(group, "remove", "rm")(remove)
    app.add_typer(group, name="image")


def build(
    cli: Cli,
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Its name.", autocompletion=complete.images)
    ] = "debian",
    suite: Annotated[str, typer.Option(help="Debian's release by code name.")] = "trixie",
    package: Annotated[
        list[str] | None,
        typer.Option(help="A package besides the base system. May be given again.", show_default=False),
    ] = None,
    size: Annotated[str, typer.Option(metavar="SIZE", help="Size of the disk; the file is sparse.")] = "4G",
    copy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC[:DST]",
            help="A file or folder to copy in; it belongs to root there. May be given again.",
            show_default=False,
        ),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(help="A program to run in the guest's root, after all else.", show_default=False),
    ] = None,
    mirror: Annotated[str, typer.Option(metavar="URL", help="Where to get Debian; the host's own.")] = "",
    cmdline: Annotated[str, typer.Option(metavar="TEXT", help="Added to the kernel's command line.")] = "",
    root_password: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            envvar="LIVECLONE_ROOT_PASSWORD",
            help="For the console; without it nobody can log in there.",
            show_default=False,
        ),
    ] = "",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Build it anew, with today's packages; replaces an image that nothing stands on."
        ),
    ] = False,
) -> None:
    """Build a Debian guest with our agent. The same recipe is built once."""

    async def work(ctx: Context) -> Image:
        from ..engine import image
        from ..images.spec import ImageSpec, Secret, parse_copy
        from ..units import parse_size

        spec = ImageSpec(
            name=name,
            suite=suite,
            packages=tuple(package or ()),
            disk_bytes=parse_size(size),
            files=tuple(parse_copy(text) for text in copy or ()),
            script=script,
            cmdline=cmdline,
            root_password=Secret(root_password) if root_password else None,
            mirror=mirror,
        )
        return await image.build(ctx, spec, fresh=fresh)

    _print_made(cli, cli.run(work))


def import_(
    cli: Cli,
    file: Annotated[Path, typer.Argument(help="A qcow2 or raw disk that boots by itself.")],
    name: Annotated[str, typer.Option(help="Its name; the file's by default.")] = "",
) -> None:
    """Import a disk that boots by itself."""

    async def work(ctx: Context) -> Image:
        from ..images.importing import import_disk

        return await import_disk(file, name or file.stem, ctx.layout.images, ctx.progress)

    _print_made(cli, cli.run(work))


def list_(cli: Cli) -> None:
    """List images."""

    async def work(ctx: Context) -> list[Image]:
        return ctx.images.list()

    images = cli.run(work)
    if cli.json:
        output.print_json(images)
    elif cli.quiet:
        for image in images:
            output.print_line(image.name)
    else:
        from ..units import render_size

        output.print_table(
            ("name", "suite", "disk", "on disk", "agent", "packages", "age"),
            (
                (
                    *(i.name, i.suite or "imported", render_size(i.disk_bytes), render_size(_used(i))),
                    *("yes" if i.has_agent else "no", " ".join(i.packages), output.render_age(i.created_at)),
                )
                for i in images
            ),
        )


def show(cli: Cli, image: params.Image) -> None:
    """Show all that is known of an image."""

    async def work(ctx: Context) -> Image:
        return ctx.images.load(image)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
        return
    from ..units import render_size

    output.print_line(f"image {found.name}: {found.suite or 'imported'}")
    output.print_facts(
        (
            (
                "created",
                f"{found.created_at:%Y-%m-%d %H:%M:%S} UTC, {output.render_age(found.created_at)} ago",
            ),
            ("disk", f"{found.disk}, {render_size(found.disk_bytes)}, {render_size(_used(found))} used"),
            ("kernel", found.boot.kernel),
            ("initrd", found.boot.initrd),
            ("cmdline", found.boot.cmdline),
            ("agent", "yes" if found.has_agent else "no: no live clones"),
            ("packages", " ".join(found.packages)),
            ("recipe", found.recipe[:12]),
            ("made in", f"{found.took_s} s" if found.took_s else ""),
        )
    )


def remove(
    cli: Cli,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Names of images.", autocompletion=complete.images),
    ],
) -> int:
    """Remove images that no machine and no snapshot stands on."""
    from ..errors import LivecloneError
    from . import exits

    async def work(ctx: Context) -> dict[str, LivecloneError | None]:
        from ..engine import remove as removals

        done: dict[str, LivecloneError | None] = {}
        for name in images:
            try:
                await removals.remove_image(ctx, name)
                done[name] = None
            except LivecloneError as error:
                done[name] = error
        return done

    outcomes = cli.run(work)
    if cli.json:
        output.print_json(
            [
                {"name": name, "done": "" if error else "removed", "error": error.fields() if error else None}
                for name, error in outcomes.items()
            ]
        )
    failed = [error for error in outcomes.values() if error is not None]
    for name, error in outcomes.items():
        if error is None and not cli.json:
            output.print_line(name if cli.quiet else f"{name} removed")
    for error in failed:
        cli.print_error(error)
    return exits.code_of(failed[0]) if failed else 0


def _print_made(cli: Cli, image: Image) -> None:
    if cli.json:
        output.print_json(image)
    elif cli.quiet:
        output.print_line(image.name)
    else:
        output.print_line(f"image {image.name} is ready: liveclone run {image.name}")


def _used(image: Image) -> int:
    try:
        return Path(image.disk).stat().st_blocks * 512
    except OSError:
        return 0
