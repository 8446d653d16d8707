"""The command `./dev bench`; see the package."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from liveclone.errors import LivecloneError
from liveclone.units import render_duration

from . import (
    after,
    circumstances,
    clones,
    comparison,
    crowd,
    formats,
    identity,
    instructions,
    lab,
    libvirt,
    pauses,
    picture,
    plan,
    pool,
    series,
    table,
    turns,
)
from .plan import Plan
from .recording import Recorder
from .series import Entry

MEASURE = {
    "pauses": pauses.measure,
    "clones": clones.measure,
    "pool": pool.measure,
    "identity": identity.measure,
    "crowd": crowd.measure,
    "formats": formats.measure,
    "libvirt": libvirt.measure,
    "after": after.measure,
    "instructions": instructions.measure,
}
INTERRUPTED = 130  # as a shell has it for Ctrl-C


async def measure(chosen: Plan, recorder: Recorder, screen: Console) -> None:
    """Measure all that the plan names; what there is so far is in the recorder whatever happens."""
    task = asyncio.current_task()
    assert task is not None
    lab.interruptible(asyncio.get_running_loop(), task)
    async with lab.open_lab(chosen, recorder, screen) as laboratory:
        for name in chosen.modules:
            await MEASURE[name](laboratory)


def show(entries: Sequence[Entry], drawn: Path | None, screen: Console) -> None:
    """Print the tables, and draw the picture."""
    if not entries:
        return
    Console().print(table.render(entries))
    if drawn is None:
        return
    try:
        for path in picture.draw(entries, drawn):
            screen.print(f"picture: {path}", highlight=False)
    except picture.Missing as error:
        screen.print(f"[yellow]{error}[/]", highlight=False)


def place_picture(arguments: argparse.Namespace) -> Path | None:
    """Return where the picture goes: where it was asked for, or beside the series."""
    file: Path | None = arguments.json or arguments.source
    return arguments.picture or (file and file.with_suffix(".svg"))


def run(arguments: argparse.Namespace, screen: Console) -> int:
    """Measure, and show it; an interrupted or failed run shows what it has."""
    recorder = Recorder(circumstances.describe())
    began = time.monotonic()
    status = 0
    try:
        asyncio.run(measure(plan.choose(arguments), recorder, screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.print("[yellow]interrupted[/]")
        status = INTERRUPTED
    except LivecloneError as error:
        status = explain(error, screen)
    entries = recorder.entries()
    if arguments.json and entries:
        series.save(entries, arguments.json)
        if not arguments.quiet:
            screen.print(f"series: {arguments.json}", highlight=False)
    if not arguments.quiet:
        show(entries, place_picture(arguments), screen)
    screen.print(f"measured for {render_duration(time.monotonic() - began)}", highlight=False)
    return status


def run_by_turns(arguments: argparse.Namespace, screen: Console) -> int:
    """Measure this checkout and another revision by turns, and show what differs."""
    words = plan.render(arguments)
    try:
        compared, interrupted = turns.measure(arguments.compare, arguments.pairs, words, screen)
    except KeyboardInterrupt:
        screen.print("[yellow]interrupted[/]")
        return INTERRUPTED
    except LivecloneError as error:
        return explain(error, screen)
    if interrupted:
        screen.print(f"[yellow]interrupted after {compared.pairs} of {arguments.pairs} pairs[/]")
    if compared.pairs:
        Console().print(comparison.render(compared))
        if arguments.json:
            series.write(compared, arguments.json)
            screen.print(f"comparison: {arguments.json}", highlight=False)
    return INTERRUPTED if interrupted else 0


def explain(error: LivecloneError, screen: Console) -> int:
    """Print what failed, and return the exit status for it."""
    for name, value in error.fields().items():
        screen.print(f"[red]{name}: {value}[/]", highlight=False)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench", description="Measure snapshots and clones on this host."
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the series there, and a picture beside it"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="show these series; measure nothing"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it there, as SVG")
    parser.add_argument("--quiet", action="store_true", help="neither tables nor picture")
    parser.add_argument(
        "--compare",
        metavar="REVISION",
        help="measure that revision and this checkout by turns, and say what differs",
    )
    parser.add_argument(
        "--pairs", type=plan.positive, default=5, help="runs of each, for --compare (default: %(default)s)"
    )
    plan.add_arguments(parser)
    arguments = parser.parse_args()
    screen = Console(stderr=True)
    if arguments.compare is not None:
        if arguments.source or arguments.picture or arguments.quiet:
            parser.error("--compare goes with neither --from, --picture nor --quiet")
        return run_by_turns(arguments, screen)
    if arguments.source is None:
        return run(arguments, screen)
    try:
        entries = series.load(arguments.source)
    except (OSError, msgspec.DecodeError) as error:
        parser.error(f"{arguments.source} cannot be read: {error}")
    if arguments.json:
        series.save(entries, arguments.json)
    show(entries, place_picture(arguments), screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
