"""The command `./dev bench peers`; see the package."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console

from .. import lab, plan
from ..command import Command
from ..recording import Recorder
from . import base, picture, table
from .kinds import load_peers
from .measure import measure

# The sizes are the least and the most of `./dev bench`: what does not grow between them does not grow.
DEFAULT = replace(plan.DEFAULT, name="peers", sizes_mib=(512, 4096), clones=5, crowds=(1, 16), modules=())
LIMIT_S = 900
QUICK = replace(DEFAULT, name="peers, quick", sizes_mib=(512,), clones=1, crowds=(1, 4))


async def run(arguments: argparse.Namespace, recorder: Recorder, screen: Console) -> None:
    """Measure the peers that the arguments name."""
    chosen = QUICK if arguments.quick else DEFAULT
    if arguments.sizes:
        chosen = replace(chosen, sizes_mib=arguments.sizes, crowd_mib=arguments.sizes[0])
    if arguments.repeats:
        chosen = replace(chosen, clones=arguments.repeats)
    async with lab.open_lab(chosen, recorder, screen) as laboratory:
        await measure(laboratory, base.choose(load_peers(), arguments.only), arguments.limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev bench peers",
        description="Measure live clones beside what else there is: the same application, by each way.",
        epilog="The peers: " + "; ".join(f"{peer.name}: {peer.words}" for peer in load_peers()) + ".",
    )
    parser.add_argument("--quick", action="store_true", help="at 512 MiB alone, each once, and four at once")
    parser.add_argument(
        "--only", type=_names, default=(), metavar="PEER,...", help="measure these alone, with commas"
    )
    parser.add_argument(
        "--sizes",
        type=plan.parse_sizes,
        metavar="MIB,...",
        help="RAM in MiB, with commas; many at once are started at the first alone",
    )
    parser.add_argument(
        "--repeats", type=plan.parse_count, metavar="N", help="one copy at a time, this often"
    )
    parser.add_argument(
        "--limit",
        type=plan.parse_count,
        default=LIMIT_S,
        metavar="S",
        help=f"leave many at once out where that would take longer than so many seconds ({LIMIT_S})",
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        base.choose(load_peers(), names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


COMMAND = Command(_parser(), run, table.render, picture.draw)
