"""A laboratory: a home of its own on disk and tmpfs, one image, sources; when it closes nothing of it is left.

    open_lab ── image from the cache ── open_source ── (boot, fill) ── measure ── remove ─┐
        └── clean up: machines, snapshots, whatever process still knows our home, folders <┘   also when interrupted

One source runs at a time, so that measurements do not disturb one another; for the same reason the sealing of a
snapshot, which goes on in the background for as long as the disk needs, is waited for or ended before anything else
is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from liveclone.engine import disposal, execute, remove, run, settings
from liveclone.engine.context import Context, open_context
from liveclone.errors import GuestError, LivecloneError, Refused
from liveclone.host import links, netns, process
from liveclone.images.build import build_image
from liveclone.images.library import ImageLibrary
from liveclone.images.spec import ImageSpec
from liveclone.model.machine import Machine
from liveclone.model.network import Port
from liveclone.model.snapshot import Snapshot
from liveclone.units import MIB

from .plan import Plan
from .recording import Recorder

IMAGE = "bench"
PREFIX = "liveclone-bench-"
GUEST_LOAD = (Path(__file__).parent / "guest_load.py").read_text()


@dataclass
class Lab:
    """What every measurement is given."""

    ctx: Context
    plan: Plan
    recorder: Recorder
    screen: Console

    def say(self, text: str) -> None:
        """Tell the user how far it is."""
        self.screen.print(text, highlight=False)


@contextlib.asynccontextmanager
async def open_lab(plan: Plan, recorder: Recorder, screen: Console) -> AsyncIterator[Lab]:
    """Make a home for the measurements, and remove it with all that is in it, however this ends."""
    home = temporary_folder()
    base = settings.read()
    chosen = replace(base, home=home, hot=base.hot.with_name(home.name))
    try:
        ctx = open_context(chosen)
        lab = Lab(ctx, plan, recorder, screen)
        try:
            if plan.needs_guest:
                await take_image(lab, ImageSpec(name=IMAGE))
            yield lab
        finally:
            await asyncio.shield(_clean_up(lab))
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(chosen.hot, ignore_errors=True)


@contextlib.asynccontextmanager
async def open_source(
    lab: Lab, ram_mib: int, image: str = IMAGE, what: str = "fill", ports: Sequence[Port] = ()
) -> AsyncIterator[Machine]:
    """Boot a machine, note how long that took, let it fill its memory; remove it and its snapshots at the end.

    Args:
        what: it does with that memory (guest_load.py).

    Raises:
        Refused: this host has not memory enough (see `skips`).
    """
    ctx = lab.ctx
    began = time.monotonic()
    source = await run.run(ctx, run.Request(image=image, name="source", ram_bytes=ram_mib * MIB, ports=ports))
    try:
        ready_s = time.monotonic() - began
        at_ready = touched_mib(source)
        lab.recorder.add(
            "cold_boot_ready", "s", ready_s, ram_mib=ram_mib, touched_mib=at_ready, clones=0, **about(source)
        )
        filled = await load(lab, source, what)
        lab.say(
            f"  {ram_mib} MiB: booted in {ready_s:.1f} s, {filled} MiB filled, {touched_mib(source):.0f} touched"
        )
        yield source
    finally:
        await asyncio.shield(remove_all(ctx))


def about(machine: Machine) -> dict[str, str]:
    """Return the dimensions that belong to a machine."""
    return {"acceleration": machine.hardware.acceleration.value, "hypervisor": machine.hardware.hypervisor}


def touched_mib(machine: Machine) -> float:
    """Return how much of its RAM file on tmpfs exists: what the guest has ever written, from cold to now."""
    assert machine.memory is not None
    return Path(machine.memory.path).stat().st_blocks * 512 / MIB


def image_mib(snapshot: Snapshot) -> float:
    """Return how much of a snapshot's memory image is not a hole."""
    assert snapshot.hot is not None
    return Path(snapshot.hot.path).stat().st_blocks * 512 / MIB


async def load(lab: Lab, machine: Machine, what: str) -> str:
    """Start `guest_load.py` in the guest; it stays when this returns, and has said what it returns."""
    code, out, err = await execute.ask(lab.ctx, machine, ["python3", "-c", GUEST_LOAD, what])
    if code:
        raise GuestError(
            f"the guest cannot {what}",
            code="no-load",
            tried=f"guest_load.py {what}",
            on=machine.name,
            seen=err.strip()[-300:],
        )
    return out.strip()


async def end_sealing(lab: Lab) -> None:
    """End the processes that make durable copies: nobody will want those, and they would disturb what comes next."""
    await _end(lab.ctx, lambda line: "liveclone.engine.seal" in line)


@contextlib.contextmanager
def skips(lab: Lab, what: str) -> Iterator[None]:
    """Go on without what this host has not memory enough for, and say so."""
    try:
        yield
    except Refused as error:
        if error.code != "no-memory":
            raise
        lab.say(f"  [yellow]left out: {what}: {error.message} ({error.seen})[/]")


def temporary_folder() -> Path:
    """Make a folder of ours on a disk: /tmp is memory on Debian 13; overlays and sealed images are too large for it."""
    large = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=large))


async def take_image(lab: Lab, spec: ImageSpec) -> None:
    """Build an image, once: it stays in the cache of `./dev`."""
    cache = os.environ.get("LIVECLONE_DEV_CACHE") or Path(__file__).parent.parent / ".dev" / "cache"
    folder = Path(cache) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    last = ""

    def progress(phase: str, fraction: float | None = None) -> None:
        nonlocal last
        if phase != last:
            lab.say(f"  [dim]image: {phase}[/]")
        last = phase

    await build_image(spec, folder, progress, replace=True)
    lab.ctx.images = ImageLibrary(folder)


async def remove_all(ctx: Context) -> None:
    """Remove all machines and snapshots of a home."""
    await _end(ctx, lambda line: "liveclone.engine.seal" in line or "liveclone.engine.refill" in line)
    for machine in ctx.machines.list():
        await remove.remove_machine(ctx, machine.id, force=True)
    for snapshot in ctx.snapshots.list():
        await remove.remove_snapshot(ctx, snapshot.id)
    disposal.sweep(ctx)


async def _clean_up(lab: Lab) -> None:
    """Remove everything; what resists is ended, and named."""
    ctx = lab.ctx
    try:
        await remove_all(ctx)
    except LivecloneError as error:
        lab.say(f"[red]clean-up: {error.message} ({error.seen})[/]")
    for line in await _end(ctx, lambda line: True):
        lab.say(f"[red]was left behind, now ended: {line[:100]}[/]")
    if netns.exists(ctx.layout.namespace):
        links.remove_network(ctx.network_spec(), force=True)


async def _end(ctx: Context, chosen: Callable[[str], bool]) -> list[str]:
    """End the processes that have our home on their command line, and return those lines."""
    ended = []
    for pid, line in process.find(str(ctx.layout.home)):
        if chosen(line):
            with contextlib.suppress(LivecloneError):  # gone by now
                await process.end(process.ref(pid))
            ended.append(line)
    return ended


def interruptible(loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
    """Let SIGTERM be what Ctrl-C is: the measurement ends, and cleans up."""
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    if hasattr(signal, "SIGHUP") and sys.stderr.isatty():
        loop.add_signal_handler(signal.SIGHUP, task.cancel)
