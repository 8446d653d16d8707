"""Live clones of an ordinary libvirt domain, beside `virsh restore` of its whole save image.

    domain_pause    ms, the source's, from libvirt's event that it stands still to the one that it goes on
    domain_gap      ms, the longest time for which a process in it did not run, from the request to the end (ticks.py)
    domain_gap_idle ms, the same over some time without a snapshot
    domain_nics_away
                    ms, from libvirt's event that its first network card is out to the one that the last is back
    clone_start     ms, from the request to the moment at which the clone's guest runs, its memory shared (with the hook)
    domain_ready    s, from the request to verified, connected and ready
    virsh_restore   ms, of `virsh restore`, until the restored guest runs; `save`: its file is on `tmpfs`, or on `disk`,
                    not cached
    eight_memory    MiB, that eight idle ones have to themselves, with the memory image; `way`: `clone`, or `restore`
    eight_ram       MiB, of that the RAM of their guests. The rest is QEMU's own, under emulation the guest's translated code

All by turns, each removed before the next; the source, its memory filled, runs on beside them, idle. `virsh restore` is what
an administrator has without us: a full copy of the memory, and a guest that takes itself for its source.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from liveclone.engine import clone, parts, remove, snapshot
from liveclone.host import machine as host_machine
from liveclone.model.machine import Machine
from liveclone.model.parameters import Parameters
from liveclone.model.snapshot import Snapshot
from liveclone.units import GIB, MIB

from . import crowd, domains, ticks
from . import lab as laboratory
from .domains import Libvirt
from .lab import Lab
from .private import private_bytes, private_ram_bytes
from .save_image import SaveImage

CALM_S = 2.0
EIGHT = 8
# On networks of their own; the guest has no DHCP client, and would be waited for.
STATIC = Parameters(address="10.0.2.15/24")
# The steps of a clone until its guest runs; those that follow are the guest's, and the network.
START_STEPS = ("wait", "make", "restore", "resume")


async def measure(lab: Lab) -> None:
    """Measure at each size."""
    obstacle = domains.find_obstacle()
    if obstacle:
        lab.say(f"  [yellow]left out: libvirt: {obstacle}[/]")
        return
    async with domains.open_libvirt(lab) as libvirt:
        for ram_mib in lab.plan.sizes_mib:
            lab.say(f"clones of a libvirt domain of {ram_mib} MiB, and virsh restore")
            with laboratory.skips(lab, f"a libvirt domain of {ram_mib} MiB"):
                async with domains.open_domain(libvirt, ram_mib) as (source, log):
                    await _measure_starts(libvirt, source, ram_mib)
                    await _measure_pauses(libvirt, source, ram_mib, log)


class _Series:
    """Adds values that have a source in common."""

    def __init__(self, lab: Lab, source: Machine, taken: Snapshot, ram_mib: int) -> None:
        self.lab, self.ram_mib = lab, ram_mib
        self.dimensions, self.touched_mib = laboratory.about(source), laboratory.image_mib(taken)

    def add(self, series: str, unit: str, value: float, clones: int = 1, **more: str) -> None:
        self.lab.recorder.add(
            series,
            unit,
            value,
            ram_mib=self.ram_mib,
            touched_mib=self.touched_mib,
            clones=clones,
            **self.dimensions,
            **more,
        )


async def _measure_starts(libvirt: Libvirt, source: Machine, ram_mib: int) -> None:
    lab = libvirt.lab
    taken = await snapshot.take(lab.ctx, snapshot.Request(machine=source.id, name="warm", wait_sealed=True))
    series = _Series(lab, source, taken, ram_mib)
    parts_of = lab.ctx.layout.snapshot(taken.id)
    assert taken.hot is not None
    state, memory = parts_of / taken.device_state.file, Path(taken.hot.path)

    def make_disk(path: Path) -> None:
        parts.make_overlay(path, parts_of / taken.disk.file, taken.disk_bytes, taken.disk_format)

    saves = {
        kind: SaveImage(folder / f"{kind}.save", make_disk, libvirt.disk_folder)
        for kind, folder in (("tmpfs", libvirt.hot_folder), ("disk", libvirt.disk_folder))
    }
    if host_machine.memory().available_bytes < 2 * ram_mib * MIB + GIB:
        lab.say("  [yellow]left out: no room for a whole save image and a domain that is restored from it[/]")
        saves = {}
    try:
        for save in saves.values():
            await asyncio.to_thread(save.write, state, memory)
            lab.say(f"    {save.path.stem}: a save image of {save.size_mib:.0f} MiB")
        for _ in range(lab.plan.restores):
            await _clone(series)
            for kind, save in saves.items():
                name, lasted_s = await save.restore(libvirt.uri)
                await libvirt.end(name)
                series.add("virsh_restore", "ms", lasted_s * 1e3, save=kind)
                lab.say(f"    virsh restore, {kind}: {lasted_s * 1e3:.0f} ms")
        if saves and ram_mib == lab.plan.crowd_mib:
            await _weigh(libvirt, series, saves["tmpfs"])
    finally:
        for save in saves.values():
            save.path.unlink(missing_ok=True)
    await remove.remove_snapshot(lab.ctx, taken.id)


async def _clone(series: _Series) -> None:
    lab = series.lab
    (result,) = await clone.start(lab.ctx, clone.Request(snapshot="warm", parameters=[STATIC]))
    if result.error is not None:
        raise result.error
    assert result.machine is not None
    await remove.remove_machine(lab.ctx, result.machine.id, force=True)
    start_ms = sum(result.steps_ms[step] for step in START_STEPS)
    series.add("clone_start", "ms", start_ms)
    series.add("domain_ready", "s", result.ready_s)
    steps = ", ".join(f"{step} {ms:.0f}" for step, ms in result.steps_ms.items())
    lab.say(f"    a clone runs after {start_ms:.0f} ms and is ready after {result.ready_s:.3f} s ({steps})")


async def _weigh(libvirt: Libvirt, series: _Series, save: SaveImage) -> None:
    """Note the memory of eight clones, then of eight restored domains."""
    lab, image_mib = libvirt.lab, series.touched_mib
    if host_machine.memory().available_bytes < EIGHT * series.ram_mib * MIB + GIB:
        lab.say(f"  [yellow]left out: no room for {EIGHT} domains at once[/]")
        return
    results = await clone.start(
        lab.ctx, clone.Request(snapshot="warm", count=EIGHT, parameters=[STATIC] * EIGHT)
    )
    try:
        for result in results:
            if result.error is not None:
                raise result.error
        machines = [result.machine for result in results if result.machine is not None]
        await _weigh_all(series, [one.process.pid for one in machines if one.process], "clone", image_mib)
    finally:
        for result in results:
            if result.machine is not None:
                await remove.remove_machine(lab.ctx, result.machine.id, force=True)
    names: list[str] = []
    try:
        for _ in range(EIGHT):
            names.append((await save.restore(libvirt.uri))[0])
        await _weigh_all(series, [domains.find_pid(name) for name in names], "restore", 0.0)
    finally:
        for name in names:
            await libvirt.end(name)


async def _weigh_all(series: _Series, pids: list[int], way: str, image_mib: float) -> None:
    waited_s = await crowd.wait_idle(pids)
    ram_bytes = series.ram_mib * MIB
    mib = image_mib + sum(private_bytes(pid) for pid in pids) / MIB
    of_ram_mib = image_mib + sum(private_ram_bytes(pid, ram_bytes) for pid in pids) / MIB
    series.add("eight_memory", "MiB", mib, clones=len(pids), way=way)
    series.add("eight_ram", "MiB", of_ram_mib, clones=len(pids), way=way)
    series.lab.say(
        f"    {len(pids)} by {way}: {mib:.0f} MiB, {of_ram_mib:.0f} of it RAM, idle after {waited_s:.0f} s"
    )


async def _measure_pauses(libvirt: Libvirt, source: Machine, ram_mib: int, log: Path) -> None:
    lab = libvirt.lab
    await laboratory.load(lab, source, "tick")
    async with ticks.open_watch(log) as watch:
        for _ in range(lab.plan.restores):
            await watch.take()
            await asyncio.sleep(CALM_S)
            calm = await watch.take()
            async with domains.open_cards(libvirt, source) as cards:
                taken = await snapshot.take(lab.ctx, snapshot.Request(machine=source.id))
                away_s = await cards.away_s()
            seen = await watch.take()
            await laboratory.end_sealing(lab)
            pause_ms, gap_ms = taken.capture.pause_ns / 1e6, seen.longest_s * 1e3
            series = _Series(lab, source, taken, ram_mib)
            series.add("domain_gap_idle", "ms", calm.longest_s * 1e3, clones=0)
            series.add("domain_pause", "ms", pause_ms, clones=0)
            series.add("domain_gap", "ms", gap_ms, clones=0)
            series.add("domain_nics_away", "ms", away_s * 1e3, clones=0)
            lab.say(
                f"    snapshot: paused {pause_ms:.1f} ms, gap {gap_ms:.1f} ms, no card for {away_s:.2f} s, "
                f"clones could start after {taken.capture.until_clonable_ns / 1e9:.2f} s"
            )
            await remove.remove_snapshot(lab.ctx, taken.id)
