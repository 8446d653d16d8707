"""cp: files between host and guest."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from . import complete, output
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..errors import Refused

_END = re.compile(r"([A-Za-z0-9-]+):(.*)", re.DOTALL)

End = Annotated[
    str,
    typer.Argument(
        help="MACHINE:PATH, a path of the host, or - for a tar stream.", autocompletion=complete.copy_ends
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "cp")(copy)


def copy(cli: Cli, source: End, target: End) -> None:
    """Copy files between host and guest. One side is MACHINE:PATH; - reads or writes a tar stream."""
    inside, outside = split_end(source), split_end(target)
    if (inside is None) == (outside is None):
        raise _two_sides(both=inside is not None)

    async def work(ctx: Context) -> tuple[str, ...]:
        from ..engine import copy as copies
        from ..engine import execute
        from . import streams

        if outside is not None:
            machine = execute.find_running(ctx, outside[0])
            if source == "-":
                await copies.put_archive(ctx, machine, outside[1], streams.read)
            else:
                await copies.copy_in(ctx, machine, source, outside[1])
            return ()
        assert inside is not None
        machine = execute.find_running(ctx, inside[0])
        if target == "-":
            await copies.get_archive(ctx, machine, inside[1], streams.write_out)
            return ()
        return await copies.copy_out(ctx, machine, inside[1], target)

    left_out = cli.run(work)
    if cli.json and target != "-":
        output.print_json({"source": source, "target": target, "left_out": left_out})
    if left_out and not cli.json and not cli.quiet:
        shown = ", ".join(output.clean(name) for name in left_out[:5])
        sys.stderr.write(f"liveclone: left out, since they are no files: {shown}\n")


def split_end(text: str) -> tuple[str, str] | None:
    """Return machine and path of MACHINE:PATH, None for a path of the host (./a:b is one).

    Raises:
        Refused: a machine without a path.
    """
    from ..errors import Refused

    match = _END.fullmatch(text)
    if match is None:
        return None
    if not match[2]:
        raise Refused(
            f"{text} names no path",
            code="bad-path",
            tried="reading where to copy",
            on=text,
            next_step=f"write it like {text}/root",
        )
    return match[1], match[2]


def _two_sides(*, both: bool) -> Refused:
    from ..errors import Refused

    return Refused(
        "both sides are guests" if both else "neither side is a guest",
        code="bad-copy",
        tried="reading where to copy",
        next_step="copy to the host and from there to the other guest"
        if both
        else "write one side as MACHINE:PATH",
    )
