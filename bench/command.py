"""What every command that measures does: files, interruption, tables, picture; what it measures is the caller's."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console, RenderableType

from liveclone.errors import LivecloneError
from liveclone.units import render_duration

from . import circumstances, lab, picture, series
from .recording import Recorder
from .series import Entry

INTERRUPTED = 130  # as a shell has it for Ctrl-C


@dataclass(frozen=True)
class Command:
    """A command. `measure` puts into the recorder what it has as it goes, so that an interrupted run shows it.

    `instead` may do something else, and returns the exit status then.
    """

    parser: argparse.ArgumentParser
    measure: Callable[[argparse.Namespace, Recorder, Console], Awaitable[None]]
    render: Callable[[Sequence[Entry]], RenderableType]
    draw: Callable[[Sequence[Entry], Path], list[Path]]
    instead: Callable[[argparse.Namespace, Console], int | None] = lambda arguments, screen: None

    def main(self, words: Sequence[str]) -> int:
        """Carry it out and return its exit status."""
        _add_files(self.parser)
        arguments = self.parser.parse_args(words)
        screen = Console(stderr=True)
        if (status := self.instead(arguments, screen)) is not None:
            return status
        if arguments.source is None:
            return self._run(arguments, screen)
        try:
            entries = series.load(arguments.source)
        except (OSError, msgspec.DecodeError) as error:
            self.parser.error(f"{arguments.source} cannot be read: {error}")
        if arguments.json:
            series.save(entries, arguments.json)
        self._show(entries, _place_picture(arguments), screen)
        return 0

    def _run(self, arguments: argparse.Namespace, screen: Console) -> int:
        """Measure, and show it; an interrupted or failed run shows what it has."""
        recorder = Recorder(circumstances.describe())
        began = time.monotonic()
        status = 0
        try:
            asyncio.run(self._measure(arguments, recorder, screen))
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
            self._show(entries, _place_picture(arguments), screen)
        screen.print(f"measured for {render_duration(time.monotonic() - began)}", highlight=False)
        return status

    async def _measure(self, arguments: argparse.Namespace, recorder: Recorder, screen: Console) -> None:
        task = asyncio.current_task()
        assert task is not None
        lab.interruptible(asyncio.get_running_loop(), task)
        await self.measure(arguments, recorder, screen)

    def _show(self, entries: Sequence[Entry], drawn: Path | None, screen: Console) -> None:
        """Print the tables, and draw the picture."""
        if not entries:
            return
        Console().print(self.render(entries))
        if drawn is None:
            return
        try:
            for path in self.draw(entries, drawn):
                screen.print(f"picture: {path}", highlight=False)
        except picture.Missing as error:
            screen.print(f"[yellow]{error}[/]", highlight=False)


def explain(error: LivecloneError, screen: Console) -> int:
    """Print what failed, and return the exit status for it."""
    for name, value in error.fields().items():
        screen.print(f"[red]{name}: {value}[/]", highlight=False)
    return 1


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the series there, and a picture beside it"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="show these series; measure nothing"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it there, as SVG")
    parser.add_argument("--quiet", action="store_true", help="neither tables nor picture")


def _place_picture(arguments: argparse.Namespace) -> Path | None:
    """Return where the picture goes: where it was asked for, or beside the series."""
    file: Path | None = arguments.json or arguments.source
    return arguments.picture or (file and file.with_suffix(".svg"))
