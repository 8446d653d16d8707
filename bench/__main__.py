"""The command `./dev bench`; see the package."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from . import clones, crowd, formats, identity, lab, libvirt, pauses, picture, plan, pool, table
from .command import Command
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
}


async def measure(arguments: argparse.Namespace, recorder: Recorder, screen: Console) -> None:
    """Measure all that the arguments ask for."""
    chosen = plan.choose(arguments)
    async with lab.open_lab(chosen, recorder, screen) as laboratory:
        for name in chosen.modules:
            await MEASURE[name](laboratory)


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["peers"]:
        return PEERS.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description="Measure snapshots and clones on this host.",
        epilog="./dev bench peers --help: clones beside what else there is.",
    )
    plan.add_arguments(parser)
    return Command(parser, measure, table.render, picture.draw).main(words)


if __name__ == "__main__":
    sys.exit(main())
