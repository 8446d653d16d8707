"""How much is measured.

Only the first snapshot of a machine from cold is a handover, so each value of `source_pause` by handover costs a boot.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

MODULES = ("pauses", "clones", "pool", "identity", "crowd", "formats", "libvirt", "after")
EXTRA = ("instructions",)  # only when asked for: needs a package of its own
SIZES_MIB = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Plan:
    """What one run measures. Sizes are of RAM; the guest fills nearly all of it."""

    name: str
    sizes_mib: tuple[int, ...]
    handovers: int  # boots of each size
    later: int  # further snapshots of each size's last source, by background
    streams: int  # and by stream
    clones: int  # one after another, at each size
    crowd_mib: int
    crowds: tuple[int, ...]  # clones at once
    rounds: int  # of each crowd
    restores: int  # of a libvirt domain, by each way and at each size; and its snapshots
    dips_mib: tuple[int, ...]
    dips: int  # boots of each of these sizes with each load, and on each a snapshot by each method
    modules: tuple[str, ...] = MODULES

    @property
    def needs_guest(self) -> bool:
        """Whether a guest boots, so that its image has to be there."""
        return not {"formats", "instructions"}.issuperset(self.modules)


QUICK = Plan("quick", (512, 1024), 1, 2, 1, 3, 512, (1, 2, 4), 1, 2, (512,), 1)
DEFAULT = Plan("default", SIZES_MIB, 10, 10, 3, 10, 512, (1, 2, 4, 8, 16, 32), 2, 5, (512,), 3)
FULL = Plan("full", SIZES_MIB, 10, 10, 10, 20, 512, (1, 2, 4, 8, 16, 32), 5, 10, (512,), 5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a plan."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="little of everything, some eight minutes")
    amount.add_argument(
        "--full", action="store_true", help="ten boots of each size and more; an hour and a half"
    )
    parser.add_argument(
        "--only", choices=MODULES + EXTRA, action="append", help="measure only this; may be given again"
    )
    parser.add_argument("--sizes", type=parse_sizes, help="RAM in MiB, with commas: 512,4096")
    parser.add_argument(
        "--repeats", type=parse_count, help="this many boots, snapshots, clones and rounds each"
    )


def render(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments that ask for the same plan."""
    words = [f"--{name}" for name in ("quick", "full") if getattr(arguments, name)]
    words += [word for name in arguments.only or () for word in ("--only", name)]
    if arguments.sizes:
        words += ["--sizes", ",".join(str(size) for size in arguments.sizes)]
    if arguments.repeats:
        words += ["--repeats", str(arguments.repeats)]
    return words


def choose(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the arguments ask for."""
    plan = QUICK if arguments.quick else FULL if arguments.full else DEFAULT
    if arguments.only:
        plan = replace(plan, modules=tuple(name for name in MODULES + EXTRA if name in arguments.only))
    if arguments.sizes:
        plan = replace(
            plan, sizes_mib=arguments.sizes, crowd_mib=arguments.sizes[0], dips_mib=arguments.sizes
        )
    if arguments.repeats:
        n = arguments.repeats
        plan = replace(plan, handovers=n, later=n, streams=n, clones=n, rounds=n, restores=n, dips=n)
    return plan


def parse_sizes(text: str) -> tuple[int, ...]:
    """Return the sizes of RAM that an option gives, in MiB."""
    sizes: Sequence[int] = [int(part) for part in text.split(",")]
    if any(size < 256 or size % 2 for size in sizes):
        raise argparse.ArgumentTypeError("give even numbers of MiB, 256 or more")
    return tuple(sizes)


def parse_count(text: str) -> int:
    """Return the number that an option gives."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return number
