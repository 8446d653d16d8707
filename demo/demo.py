"""The main job, shown: a real machine is captured while it serves, and four warm copies of it answer seconds later.

    ./dev demo [--clones N] [--json] [--keep]

The source runs `warm_app.py`. A client streams from it over one TCP connection while the snapshot is taken; then the clones
start, all at once, and each is asked over HTTP who it is. Progress goes to stderr, the table (or one JSON object) to stdout.
Nothing is left behind, and what is would be named; the image stays in the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from liveclone.engine import clone, disposal, remove, run, settings, snapshot
from liveclone.engine.context import Context, open_context
from liveclone.errors import LivecloneError, NotFound
from liveclone.host import netns, process
from liveclone.images.build import build_image
from liveclone.images.library import ImageLibrary
from liveclone.images.spec import ImageSpec
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind, Port
from liveclone.units import MIB, render_duration

HERE = Path(__file__).parent
HTTP, TICKS = 8080, 8081
IMAGE = "warm-app"
FIRST_ANSWER_S = 180.0
WIDTH = 120  # of the table
LAST_S = 30.0  # for what ends by itself


@dataclass
class Member:
    """The source or a clone, as it answered over HTTP."""

    name: str
    ready_s: float
    token: str
    hostname: str
    machine_id: str
    host_key: str
    mac: str
    random: str
    index: str = ""


@dataclass
class Outcome:
    """What the demo found; the JSON object."""

    cold_boot_s: float
    pause_ms: float
    client_gap_ms: float
    speedup: float
    source: Member
    clones: list[Member]
    snapshot_s: float = 0.0
    warm_up_s: float = 0.0
    acceleration: str = ""
    connection_kept: bool = False
    left_behind: list[str] = field(default_factory=list)


class Stream:
    """A client of the source's ticker: one TCP connection, and the longest time without a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.longest_s = 0.0
        self.lines = 0
        self.in_order = True
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        last = time.monotonic()
        while line := await self._reader.readline():
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - last)
            last = now
            self.lines += 1
            self.in_order &= int(line.split()[0]) == self.lines
            self._came.set()

    async def more(self, lines: int) -> None:
        """Wait until that many more lines have come, or the connection has ended."""
        wanted = self.lines + lines
        while self.lines < wanted and self.open:
            self._came.clear()
            came = asyncio.ensure_future(self._came.wait())
            await asyncio.wait({came, self._task}, return_when=asyncio.FIRST_COMPLETED)
            came.cancel()

    @property
    def open(self) -> bool:
        return not self._task.done()

    async def close(self) -> None:
        self._task.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._writer.wait_closed()


async def connect(
    ctx: Context, machine: Machine, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a guest's port: inside the network's namespace, or through the published port."""
    if machine.network is NetworkKind.BRIDGE:
        async with asyncio.timeout(2.0):
            return await netns.open_connection(ctx.layout.namespace, machine.nics[0].ip, port)
    published = {p.guest_port: p.host_port for p in machine.ports}
    return await asyncio.open_connection("127.0.0.1", published[port])


async def get(ctx: Context, machine: Machine, path: str) -> dict[str, Any]:
    """Ask the guest's application over HTTP."""
    reader, writer = await connect(ctx, machine, HTTP)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {machine.name}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise OSError(f"{machine.name} answered {head[:60]!r}")
    found: dict[str, Any] = json.loads(body)
    return found


async def first_answer(ctx: Context, machine: Machine) -> dict[str, Any]:
    """Ask again and again until the application is warm: it opens its port only then."""
    end = time.monotonic() + FIRST_ANSWER_S
    while True:
        try:
            return await get(ctx, machine, "/")
        except (OSError, LivecloneError, TimeoutError):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)


async def member(ctx: Context, machine: Machine, ready_s: float) -> Member:
    found = await get(ctx, machine, "/identity")
    keys = ("token", "hostname", "machine_id", "host_key", "mac", "random", "index")
    return Member(machine.name, round(ready_s, 3), **{key: found[key] for key in keys})


async def show(ctx: Context, count: int, say: Console) -> Outcome:
    """Do it all; the machines are left running."""
    await build_image(
        ImageSpec(
            name=IMAGE,
            files=((HERE / "warm_app.py", "/opt/warm_app.py"), (HERE / "warm-app.service", UNIT)),
            script=HERE / "enable.sh",
        ),
        ctx.images.folder(IMAGE).parent,
        ctx.progress,
        replace=not any(machine.image == IMAGE for machine in ctx.machines.list()),
    )
    ports = (Port(host_port=0, guest_port=HTTP), Port(host_port=0, guest_port=TICKS))
    say.print("cold boot: power on, boot, build the index, answer ...")
    began = time.monotonic()
    source = await run.run(ctx, run.Request(image=IMAGE, name="web", ram_bytes=512 * MIB, ports=ports))
    warm = await first_answer(ctx, source)
    cold_boot_s = time.monotonic() - began
    say.print(f"  first answer after [bold]{render_duration(cold_boot_s)}[/]")
    identity = await member(ctx, source, cold_boot_s)

    stream = Stream(*await connect(ctx, source, TICKS))
    await stream.more(100)
    stream.longest_s = 0.0
    began = time.monotonic()
    taken = await snapshot.take(ctx, snapshot.Request(machine="web", name="warm"))
    snapshot_s = time.monotonic() - began
    await stream.more(100)
    kept = stream.open and stream.in_order
    gap_s = stream.longest_s
    await stream.close()
    source = ctx.machines.load(source.id)
    pause_ms = taken.capture.pause_ns / 1e6
    say.print(
        f"snapshot in {render_duration(snapshot_s)}: the source paused for [bold]{pause_ms:.1f} ms[/]; "
        f"the client's connection was {'kept' if kept else 'lost'}, longest gap {gap_s * 1000:.0f} ms"
    )
    say.print(f"{count} clones at once ...")
    results = await clone.start(ctx, clone.Request(snapshot="warm", count=count, ports=ports))
    for result in results:
        if result.error:
            raise result.error
    ready = [result for result in results if result.machine]
    clones = [await member(ctx, r.machine, r.ready_s) for r in ready if r.machine]
    after = await get(ctx, source, "/identity")
    identity = replace(identity, random=after["random"])
    return Outcome(
        cold_boot_s=round(cold_boot_s, 3),
        pause_ms=round(pause_ms, 3),
        client_gap_ms=round(gap_s * 1000, 3),
        speedup=round(cold_boot_s / statistics.median(r.ready_s for r in ready), 1),
        source=identity,
        clones=clones,
        snapshot_s=round(snapshot_s, 3),
        warm_up_s=warm["warm_up_s"],
        acceleration=source.hardware.acceleration.value,
        connection_kept=kept,
    )


UNIT = "/etc/systemd/system/warm-app.service"


def check(outcome: Outcome) -> None:
    """Fail unless the clones have the source's memory and nothing of its identity."""
    members = [outcome.source, *outcome.clones]
    for same in ("token", "index"):
        assert len({getattr(m, same) for m in members}) == 1, f"clones lost the source's {same}"
    for own in ("hostname", "machine_id", "host_key", "mac", "random"):
        values = [getattr(m, own) for m in members]
        assert all(values), f"a machine has no {own}: {values}"
        assert len(set(values)) == len(values), f"two machines share their {own}: {values}"


def render(outcome: Outcome) -> Table:
    """Return the table of all machines."""
    table = Table(title="one machine, and its live clones", caption=_caption(outcome), caption_justify="left")
    for column in (
        "machine",
        "ready in",
        "token (RAM)",
        "index",
        "host name",
        "machine-id",
        "host key",
        "MAC",
        "random",
    ):
        table.add_column(column, no_wrap=True)
    for found in (outcome.source, *outcome.clones):
        table.add_row(
            found.name,
            render_duration(found.ready_s),
            found.token[:8],
            found.index[:8],
            found.hostname,
            found.machine_id[:8],
            found.host_key.removeprefix("SHA256:")[:10],
            found.mac,
            found.random[:8],
        )
    return table


def _caption(outcome: Outcome) -> str:
    return (
        f"cold boot {outcome.cold_boot_s:.1f} s; a clone is ready {outcome.speedup:.0f} times faster. "
        f"Source paused {outcome.pause_ms:.1f} ms, its client waited {outcome.client_gap_ms:.0f} ms at most. "
        f"Acceleration: {outcome.acceleration}."
    )


async def clean_up(ctx: Context) -> None:
    """Remove every machine and snapshot of the demo's home."""
    for machine in ctx.machines.list():
        await remove.remove_machine(ctx, machine.id, force=True)
    for found in ctx.snapshots.list():
        await remove.remove_snapshot(ctx, found.id)
    disposal.sweep(ctx)
    for pid, _ in process.find(
        str(ctx.layout.home)
    ):  # what looks at a snapshot in the background ends without it
        with contextlib.suppress(NotFound):
            await process.wait(process.ref(pid), LAST_S)


def find_left_behind(ctx: Context) -> list[str]:
    """Return what is still there of the demo: processes, files on tmpfs, folders, the network namespace."""
    home, hot = str(ctx.layout.home), str(ctx.layout.hot)
    left = [f"process {pid}: {line[:80]}" for pid, line in process.find(home)]
    left += [str(path) for path in ctx.layout.hot.glob("*")] if Path(hot).exists() else []
    for folder in (ctx.layout.machines, ctx.layout.snapshots):
        left += [str(path) for path in folder.glob("*")]
    if netns.exists(ctx.layout.namespace):
        left.append(f"network namespace {ctx.layout.namespace}")
    return left


async def main(arguments: argparse.Namespace) -> int:
    say = Console(stderr=True, quiet=arguments.quiet)
    chosen = settings.read()
    temporary: Path | None = None
    if not arguments.keep:
        temporary = Path(tempfile.mkdtemp(prefix="liveclone-demo-"))
        chosen = replace(chosen, home=temporary, hot=chosen.hot.with_name(temporary.name))

    def progress(step: str, fraction: float | None = None) -> None:
        say.print(f"  [dim]{step}[/]")

    ctx = open_context(chosen, progress)
    cache = os.environ.get("LIVECLONE_DEV_CACHE")
    if cache and temporary:
        ctx.images = ImageLibrary(Path(cache) / "images")
    try:
        outcome = await show(ctx, arguments.clones, say)
        if temporary:
            await asyncio.shield(clean_up(ctx))
            outcome.left_behind = find_left_behind(ctx)
    except BaseException:
        if temporary:
            await asyncio.shield(clean_up(ctx))
        raise
    finally:
        if temporary:
            shutil.rmtree(temporary)
            shutil.rmtree(ctx.layout.hot, ignore_errors=True)
    check(outcome)
    if arguments.json:
        print(json.dumps(asdict(outcome), indent=2))
    else:
        # Whole also where the terminal is narrower, or there is none: it folds lines, we would cut cells.
        Console(width=max(Console().width, WIDTH)).print(render(outcome))
        if arguments.keep:
            Console().print("the machines are kept: `liveclone list`, `liveclone exec warm-c1 -- hostname`")
        for left in outcome.left_behind:
            say.print(f"[red]left behind: {left}[/]")
    return 1 if outcome.left_behind else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clones", type=int, default=4, help="how many clones (4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--keep", action="store_true", help="leave the machines running, in your own LIVECLONE_HOME"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(parse())))
    except LivecloneError as error:
        sys.exit("\n".join(f"{key}: {value}" for key, value in error.fields().items()))
