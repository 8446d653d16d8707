"""prove: search all parts of a snapshot for secrets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from . import output, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..formats.needles import Secret
    from ..model.scrub import Scrub

Needles = Annotated[
    str,
    typer.Option(
        "--needles",
        metavar="FILE",
        help="What to look for, one a line: as it is, or as hex:... or base64:...; - for our input.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "prove")(prove)


def prove(cli: Cli, snapshot: params.Snapshot, needles: Needles) -> int:
    """Search a snapshot for secrets. Its memory, its device state and each layer of its disk, in all usual encodings.

    Fails if one is found. Where it is, is said; what it is, never.
    """
    from ..errors import GuestError
    from . import exits

    secrets = _read(needles)

    async def work(ctx: Context) -> Scrub:
        from ..engine import search

        return await search.prove(ctx, snapshot, secrets)

    found = cli.run(work)
    if cli.json:
        output.print_json(found)
    elif not cli.quiet:
        print_proof(found)
    return 0 if found.is_clean else exits.code_of(GuestError(""))


def print_proof(proof: Scrub) -> None:
    """Print what was found, then the verdict."""
    if proof.found:
        rows = [(hit.secret, hit.part, f"{hit.offset:#x}", hit.form, hit.places) for hit in proof.found]
        output.print_table(("secret", "found in", "at", "as", "places"), rows)
        output.print_line("")
    for name in proof.not_searched:
        output.print_line(f"{name} was not searched for: it is too short, or too regular")
    output.print_line(render(proof))


def render(proof: Scrub) -> str:
    """Return the verdict in a line."""
    from ..units import render_duration, render_size

    number = len({hit.secret for hit in proof.found})
    searched = f"{render_size(sum(proof.searched_bytes.values()))} searched"
    took = render_duration(proof.took_ms / 1000)
    return f"{proof.secrets} secret{'s' * (proof.secrets != 1)}, {number} found ({searched} in {took})"


def _read(file: str) -> list[Secret]:
    from ..errors import NotFound
    from ..formats import needles

    try:
        if file == "-":
            return needles.parse_list(sys.stdin.read(), "our input")
        with open(file, encoding="utf-8", errors="surrogateescape") as source:
            return needles.parse_list(source.read(), file)
    except OSError as error:
        raise NotFound(
            f"{file} cannot be read",
            code="no-such-file",
            tried="reading what to look for",
            on=file,
            seen=error.strerror or "",
            next_step="check the path",
        ) from error
