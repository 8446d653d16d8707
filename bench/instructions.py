"""start_instructions and clone_instructions: what our own Python costs a processor, where time is too noisy to tell.

    start_instructions   millions of instructions of `liveclone --version`
    clone_instructions   millions of instructions of one clone, from the request to ready, on the fake hypervisor

Counted by callgrind (valgrind), which runs our process instruction by instruction on a processor that it makes up, some
fifty times slower; what others do on the host is not in it. Processes that we start run as ever and are not counted. Of a
clone it is the difference between some clones and one, so neither the start of Python nor the first time of anything
is in it. A start's count is the same each time; a clone's differs by up to a tenth, by how often the event loop wakes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from liveclone.drivers.fake import layers
from liveclone.engine import clone, remove, run, settings, snapshot
from liveclone.engine.context import Context, open_context
from liveclone.errors import Unsupported
from liveclone.model.base import encode, now
from liveclone.model.image import Image
from liveclone.model.machine import Boot
from liveclone.model.network import NetworkKind
from liveclone.units import MIB

from . import lab as laboratory
from .lab import Lab

RAM = 128 * MIB
CLONES = 4
SNAPSHOT = "warm"


async def measure(lab: Lab) -> None:
    """Count, as often as clones are measured, but no more than three times: that takes minutes."""
    if shutil.which("valgrind") is None:
        raise Unsupported(
            "valgrind is not there",
            code="no-valgrind",
            tried="counting instructions",
            on="valgrind",
            next_step="./dev bench --only instructions installs it; or apt-get install valgrind",
        )
    home, hot = lab.ctx.layout.home / "fake", lab.ctx.layout.hot / "fake"
    ctx = open_fake(home, hot)
    try:
        await run.run(ctx, run.Request(image="image", name="web", ram_bytes=RAM))
        await snapshot.take(ctx, snapshot.Request(machine="web", name=SNAPSHOT, wait_sealed=True))
        for _ in range(min(3, lab.plan.clones)):
            await _count_once(lab, ctx)
    finally:
        await asyncio.shield(laboratory.remove_all(ctx))


async def _count_once(lab: Lab, ctx: Context) -> None:
    home, hot = ctx.layout.home, ctx.layout.hot
    start = await asyncio.to_thread(count, ["-m", "liveclone", "--version"])
    counts = []
    for clones in (1, 1 + CLONES):
        counts.append(await asyncio.to_thread(count, ["-m", __name__, str(home), str(hot), str(clones)]))
        for machine in [one for one in ctx.machines.list() if one.clone_of]:
            await remove.remove_machine(ctx, machine.id, force=True)
    one, more = counts
    for series, value in (("start_instructions", start), ("clone_instructions", (more - one) / CLONES)):
        lab.recorder.add(series, "million", value / 1e6, ram_mib=RAM // MIB, touched_mib=0, clones=1)
        lab.say(f"    {series}: {value / 1e6:.1f} million")


def count(arguments: list[str]) -> int:
    """Return how many instructions a Python runs until it ends."""
    argv = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        sys.executable,
        "-P",
        *arguments,
    ]
    # The order of sets, and so the way that is taken, is the same each time.
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise Unsupported(
            "callgrind cannot run our Python",
            code="no-callgrind",
            tried=" ".join(argv),
            seen=done.stderr.strip()[-300:],
        )
    return int(found[1])


def open_fake(home: Path, hot: Path) -> Context:
    """Return a home on the fake hypervisor that has an image."""
    ctx = open_context(replace(settings.read(), home=home, hot=hot, driver="fake", network=NetworkKind.USER))
    folder = ctx.layout.images / "image"
    if not folder.exists():
        folder.mkdir(parents=True)
        disk = folder / "disk.qcow2"
        layers.write_base(disk, {"/etc/hostname": "image\n", "/etc/machine-id": "0" * 32 + "\n"})
        image = Image(
            name="image",
            created_at=now(),
            disk=str(disk),
            disk_bytes=1024 * MIB,
            boot=Boot(),
            has_agent=True,
        )
        (folder / "manifest.json").write_bytes(encode(image))
    return ctx


async def clone_one_by_one(home: Path, hot: Path, clones: int) -> None:
    """Be the process that is counted: start so many clones. Whoever counts removes them: callgrind has no pidfd_open(2)."""
    ctx = open_fake(home, hot)
    for _ in range(clones):
        (result,) = await clone.start(ctx, clone.Request(snapshot=SNAPSHOT))
        if result.error is not None:
            raise result.error


if __name__ == "__main__":
    asyncio.run(clone_one_by_one(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
