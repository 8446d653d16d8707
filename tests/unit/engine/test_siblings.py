"""Of many clones at once, those that are ready leave the processors to the others, and have their share again afterwards."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from liveclone.host import priority

from .world import World

pytestmark = pytest.mark.skipif(
    not priority.may_put_back(), reason="our user may not put a process back: all share alike"
)

COUNT = 3


def last(world: World) -> set[str]:
    machines = world.ctx.machines.list()
    return {machine.name for machine in machines if machine.process and priority.is_last(machine.process)}


async def start(
    world: World, monkeypatch: pytest.MonkeyPatch, processors: int, **options: str
) -> list[set[str]]:
    """Start clones on a host with so many processors; returns who was last whenever one was done."""
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    await world.run()
    await world.snapshot()
    seen = []

    def note(text: str, share: float | None) -> None:
        if text.endswith((" is ready", " failed")):
            seen.append(last(world))

    world.ctx = replace(world.ctx, progress=note)
    await world.clone(count=COUNT, **options)
    return seen


async def test_those_that_are_ready_are_last_until_all_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await start(world, monkeypatch, processors=1)
    assert [len(names) for names in seen] == [1, 2, 3]
    assert "web" not in seen[-1]
    assert last(world) == set()
    await world.remove_all()


async def test_with_a_processor_for_each_nobody_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await start(world, monkeypatch, processors=COUNT) == [set()] * COUNT
    await world.remove_all()


async def test_after_a_command_that_was_killed_repair_puts_them_back(world: World) -> None:
    await world.run()
    machine = world.machine("web")
    assert machine.process is not None
    priority.put_last(machine.process)
    assert last(world) == {"web"}
    await world.repair()
    assert last(world) == set()
    await world.remove_all()
