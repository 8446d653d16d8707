"""Machines that wait for clones: who gets one, who ends one, and what the user sees of them."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from liveclone import trace
from liveclone.engine import capacity, disposal, pool, refill, remove, seal, views
from liveclone.engine.context import Context
from liveclone.errors import Conflict, NotFound, Refused, Unsupported
from liveclone.host import locks, process
from liveclone.model.snapshot import Snapshot
from liveclone.model.waiting import Waiting, WaitingState

from .world import World, failing


async def filled(world: World, size: int = 1) -> Snapshot:
    """Return a snapshot for whose clones so many machines wait."""
    await world.run("web")
    taken = await world.snapshot("web", "warm")
    assert (await refill.set_size(world.ctx, "warm", size)).ready == size
    return taken


def waiting(world: World) -> list[Waiting]:
    return [one for taken in world.ctx.snapshots.list() for one in pool.find(world.ctx, taken.id)]


def pids(world: World) -> set[int]:
    return {one.machine.process.pid for one in waiting(world) if one.machine.process is not None}


async def test_a_clone_takes_a_machine_that_waits(world: World) -> None:
    await filled(world, 2)
    before = {one.machine.id: one.machine.process for one in waiting(world)}
    results = await world.clone("warm", 3)
    assert [result.error for result in results] == [None] * 3
    assert sum(result.pooled for result in results) == 2
    for result in results:
        assert result.evidence is not None and result.evidence.verified
        assert result.machine is not None
        if result.pooled:
            assert before.pop(result.machine.id) == result.machine.process
        await world.check_runs(result.name)
    assert (before, waiting(world)) == ({}, [])
    names = {await world.read(result.name, "/etc/hostname") for result in results}
    assert len(names) == 3
    assert await world.find_faults() == []
    assert await refill.fill(world.ctx, world.ctx.snapshots.find("warm").id) == 2
    await world.remove_all()


async def test_what_waits_is_no_machine_to_the_user(world: World) -> None:
    await filled(world)
    (one,) = waiting(world)
    assert [line.name for line in await views.list_machines(world.ctx)] == ["web"]
    for text in (one.machine.name, one.machine.id):
        with pytest.raises(NotFound):
            world.ctx.machines.find(text)
    (line,) = pool.list_pools(world.ctx)
    assert (line.snapshot, line.size, line.waiting) == ("warm", 1, {one.machine.id: WaitingState.READY})
    assert world.leased() == {world.machine("web").id}
    assert await world.repair() == []
    assert waiting(world) == [one]
    assert await world.find_faults() == []
    (result,) = await world.clone("warm")
    assert result.pooled and result.error is None
    await world.remove_all()


async def test_a_size_is_kept_and_a_smaller_one_ends_the_surplus(world: World) -> None:
    taken = await filled(world, 3)
    first = waiting(world)[0].machine.id
    smaller = await refill.set_size(world.ctx, "warm", 1)
    assert list(smaller.waiting) == [first]
    assert await refill.drain(world.ctx, "warm") == 1
    assert pool.summarize(world.ctx, taken) == smaller.replace(waiting={})
    assert len(world.processes()) == 1
    await refill.set_size(world.ctx, "warm", 0)
    assert await refill.fill(world.ctx, taken.id) == 0
    assert pool.list_pools(world.ctx) == []
    for size in (-1, pool.MOST + 1):
        with pytest.raises(Refused, match="cannot be kept"):
            await refill.set_size(world.ctx, "warm", size)
    await world.remove_all()


async def test_a_pool_goes_with_its_snapshot(world: World) -> None:
    await filled(world, 2)
    await remove.remove_snapshot(world.ctx, "warm")
    assert len(world.processes()) == 1
    assert await world.find_faults() == []
    await world.remove_all()


async def test_one_whose_process_ended_is_thrown_away_and_another_taken(world: World) -> None:
    taken = await filled(world, 2)
    lost, good = waiting(world)
    assert lost.machine.process is not None
    await process.end(lost.machine.process)
    assert pool.summarize(world.ctx, taken).waiting[lost.machine.id] is WaitingState.LOST
    (result,) = await world.clone("warm")
    assert result.machine is not None and result.machine.id == good.machine.id
    assert waiting(world) == []
    assert await world.find_faults() == []
    await world.remove_all()


async def test_one_that_mapped_another_image_is_not_used(world: World) -> None:
    taken = await filled(world)
    (one,) = waiting(world)
    assert taken.hot is not None
    image = Path(taken.hot.path)
    # The same bytes in another file: good for clones once their digest fits, but not what is mapped there.
    await asyncio.to_thread(seal.seal, world.ctx, taken.id)
    copy = image.with_suffix(".copy")
    copy.write_bytes(image.read_bytes())
    copy.rename(image)
    (result,) = await world.clone("warm")
    assert result.error is None and not result.pooled
    assert not process.is_alive(one.machine.process)
    assert await world.find_faults() == []
    await world.remove_all()


async def test_one_that_somebody_is_taking_is_left_to_them(world: World) -> None:
    taken = await filled(world)
    (one,) = waiting(world)
    with locks.hold(world.ctx.layout.lock(f"machine-{one.machine.id}"), "taking it"):
        assert pool.summarize(world.ctx, taken).waiting == {one.machine.id: WaitingState.TAKEN}
        (result,) = await world.clone("warm")
        assert not result.pooled
        assert await refill.drain(world.ctx, "warm") == 0
    assert process.is_alive(one.machine.process)
    await world.remove_all()


async def test_a_clone_that_fails_ends_what_it_took(world: World) -> None:
    await world.run("web")
    await world.snapshot("web", "warm")
    with failing("*:die:identify"):
        await refill.set_size(world.ctx, "warm", 1)  # its agent dies when it is asked for a new identity
    (result,) = await world.clone("warm")
    assert result.pooled and result.error is not None
    assert waiting(world) == []
    assert await world.find_faults() == []
    await world.remove_all()


async def test_waiting_machines_go_before_a_clone_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(world)
    await world.snapshot("web", "other")
    await refill.set_size(world.ctx, "other", 1)
    seen: list[int] = []

    def check(*_: object) -> None:
        seen.append(len(waiting(world)))
        if len(seen) < enough:
            raise Refused("not enough memory", code="no-memory")

    monkeypatch.setattr(capacity, "check_clones", check)
    enough = 2  # the other snapshot's are enough: ours can be taken
    (result,) = await world.clone("warm")
    assert (seen, result.pooled) == ([2, 1], True)
    monkeypatch.undo()
    assert (await refill.set_size(world.ctx, "warm", 1)).ready == 1
    monkeypatch.setattr(capacity, "check_clones", check)
    seen.clear()
    enough = 4
    with pytest.raises(Refused):
        await world.clone("warm")
    assert seen == [1, 1, 0]
    await world.remove_all()


async def test_filling_stops_where_memory_is_short(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.run("web")
    await world.snapshot("web", "warm")

    def check(*_: object) -> None:
        if len(waiting(world)) == 1:
            raise Refused("not enough memory", code="no-memory")

    monkeypatch.setattr(capacity, "check_clones", check)
    with pytest.raises(Refused):
        await refill.set_size(world.ctx, "warm", 3)
    (line,) = pool.list_pools(world.ctx)
    assert (line.size, line.ready) == (3, 1)
    await world.remove_all()


async def test_two_who_fill_make_no_more_than_asked_for(world: World) -> None:
    taken = await filled(world, 0)
    pool.write_size(world.ctx, taken, 2)
    made = await asyncio.gather(*(refill.fill(world.ctx, taken.id) for _ in range(3)))
    assert sum(made) == len(waiting(world)) == 2
    await world.remove_all()


async def test_a_pool_that_becomes_smaller_while_it_is_filled_has_no_surplus(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = await filled(world, 0)
    pool.write_size(world.ctx, taken, 3)

    def at(point: str) -> None:
        if point == "pool.ready" and len(waiting(world)) == 2:
            pool.write_size(world.ctx, taken, 1)

    monkeypatch.setattr(trace, "at", at)
    assert await refill.fill(world.ctx, taken.id) == 2
    assert len(waiting(world)) == 1
    assert await world.find_faults() == []
    await world.remove_all()


async def test_only_one_waits_for_its_turn_to_fill_a_pool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = await filled(world, 0)
    pool.write_size(world.ctx, taken, 1)
    with locks.hold(world.ctx.layout.lock(f"pool-{taken.id}"), "filling it"):
        next_one = asyncio.create_task(refill.fill_in_turn(world.ctx, taken.id))
        await asyncio.sleep(0)  # it goes as far as it can: it has the lock of who is next
        assert locks.is_held(world.ctx.layout.lock(f"refill-{taken.id}"))
        with pytest.raises(Conflict):
            await refill.fill_in_turn(world.ctx, taken.id)
        arguments = [str(world.home), str(world.hot), taken.id]
        assert await asyncio.to_thread(refill.main, arguments) == 0
        assert waiting(world) == []
    await next_one
    assert len(waiting(world)) == 1
    await world.remove_all()


async def test_a_snapshot_is_removed_after_those_that_somebody_just_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = await filled(world)
    told: list[str] = []
    ends, go_on = asyncio.Event(), asyncio.Event()
    end, hold, dispose = disposal.dispose_unmade, pool._held, disposal.dispose_snapshot

    async def ending(ctx: Context, machine_id: str) -> None:
        told.append("ending")
        ends.set()
        await go_on.wait()
        await end(ctx, machine_id)
        told.append("ended")

    def held(
        ctx: Context, machine_id: str, what: str, *deadline_s: float
    ) -> AbstractAsyncContextManager[None]:
        if told and what == "draining a pool":
            asyncio.get_running_loop().call_soon(go_on.set)
        return hold(ctx, machine_id, what, *deadline_s)

    def removing(*args: Any) -> None:
        told.append("removing")
        dispose(*args)

    monkeypatch.setattr(disposal, "dispose_unmade", ending)
    monkeypatch.setattr(pool, "_held", held)
    monkeypatch.setattr(disposal, "dispose_snapshot", removing)
    draining = asyncio.create_task(pool.drain(world.ctx, taken.id))
    await ends.wait()
    await remove.remove_snapshot(world.ctx, "warm")
    assert (await draining, told) == (1, ["ending", "ended", "removing"])
    assert await world.find_faults() == []
    await world.remove_all()


async def test_the_lock_of_a_machine_that_waits_is_not_swept_up(world: World) -> None:
    await filled(world)
    (one,) = waiting(world)
    lock = world.ctx.layout.lock(f"machine-{one.machine.id}")
    inode = lock.stat().st_ino
    disposal.sweep(world.ctx)
    assert lock.stat().st_ino == inode
    assert len(waiting(world)) == 1
    await world.remove_all()
    assert not lock.exists()


async def test_a_hypervisor_that_others_use_has_no_pool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    await world.snapshot("web", "warm")
    monkeypatch.setattr(type(world.ctx.driver), "shared", True)
    with pytest.raises(Unsupported, match="no pool"):
        await refill.set_size(world.ctx, "warm", 1)
    monkeypatch.undo()
    await world.remove_all()


@pytest.mark.usefixtures("refilling")
async def test_a_pool_is_filled_again_in_the_background(world: World) -> None:
    taken = await filled(world)
    (result,) = await world.clone("warm")
    assert result.pooled
    (filler,) = process.find_logging_into(world.ctx.layout.pool(taken.id))
    assert await process.wait(filler, 60.0)
    (line,) = pool.list_pools(world.ctx)
    assert line.ready == 1, (world.ctx.layout.pool(taken.id) / refill.LOG).read_text()
    await world.remove_all()


@pytest.mark.usefixtures("refilling")
async def test_clones_are_told_of_though_their_pool_cannot_be_filled_again(world: World) -> None:
    taken = await filled(world)
    (world.ctx.layout.pool(taken.id) / refill.LOG).mkdir()
    (result,) = await world.clone("warm")
    assert result.pooled
    assert result.error is None
    assert await world.find_faults() == []
    await world.remove_all()
