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
    circumstances,
    clones,
    crowd,
    formats,
    identity,
    lab,
    libvirt,
    pauses,
    picture,
    plan,
    pool,
    series,
    table,
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
        picture.draw(entries, drawn)
        screen.print(f"picture: {drawn}", highlight=False)
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
        for name, value in error.fields().items():
            screen.print(f"[red]{name}: {value}[/]", highlight=False)
        status = 1
    entries = recorder.entries()
    if arguments.json and entries:
        series.save(entries, arguments.json)
        screen.print(f"series: {arguments.json}", highlight=False)
    show(entries, place_picture(arguments), screen)
    screen.print(f"measured for {render_duration(time.monotonic() - began)}", highlight=False)
    return status


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
    plan.add_arguments(parser)
    arguments = parser.parse_args()
    screen = Console(stderr=True)
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
