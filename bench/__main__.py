"""The command `./dev bench`; see the package."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from liveclone.errors import LivecloneError

from . import (
    after,
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
from .command import INTERRUPTED, Command, explain
from .peers.command import COMMAND as PEERS
from .recording import Recorder

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


async def measure(arguments: argparse.Namespace, recorder: Recorder, screen: Console) -> None:
    """Measure all that the arguments ask for."""
    chosen = plan.choose(arguments)
    async with lab.open_lab(chosen, recorder, screen) as laboratory:
        for name in chosen.modules:
            await MEASURE[name](laboratory)


def run_by_turns(arguments: argparse.Namespace, screen: Console) -> int | None:
    """Measure this checkout and another revision by turns, and show what differs, if that is asked for."""
    if arguments.compare is None:
        return None
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


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["peers"]:
        return PEERS.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description="Measure snapshots and clones on this host.",
        epilog="./dev bench peers --help: clones beside what else there is.",
    )
    parser.add_argument(
        "--compare",
        metavar="REVISION",
        help="measure that revision and this checkout by turns, and say what differs",
    )
    parser.add_argument(
        "--pairs",
        type=plan.parse_count,
        default=5,
        help="runs of each, for --compare (default: %(default)s)",
    )
    plan.add_arguments(parser)

    def instead(arguments: argparse.Namespace, screen: Console) -> int | None:
        if arguments.compare is not None and (arguments.source or arguments.picture or arguments.quiet):
            parser.error("--compare goes with neither --from, --picture nor --quiet")
        return run_by_turns(arguments, screen)

    return Command(parser, measure, table.render, picture.draw, instead).main(words)


if __name__ == "__main__":
    sys.exit(main())
