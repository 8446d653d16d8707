"""Who seals, who begins anew what was cut short, and what `repair` settles."""

from __future__ import annotations

import asyncio
import subprocess
import threading

import pytest

from liveclone.engine import parts, recheck, remove, repair, seal
from liveclone.engine.context import Context
from liveclone.errors import NotFound, StoreError
from liveclone.host import locks, priority, process
from liveclone.model.machine import ProcessRef
from liveclone.model.snapshot import Snapshot, SnapshotState

from .world import World


def end_a_process() -> ProcessRef:
    """Return a process that has ended."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        return process.ref(child.pid)


async def test_sealing_that_was_cut_short_is_begun_again_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(seal, "start", lambda ctx, snapshot: started.append(snapshot.name))
    await world.run("web")
    for name in ("sealed", "busy", "left"):
        await world.snapshot("web", name)
    seal.seal(world.ctx, world.ctx.snapshots.find("sealed").id)
    busy = world.ctx.snapshots.find("busy")
    started.clear()
    with locks.hold(world.ctx.layout.lock(f"seal-{busy.id}"), "sealing"):
        assert [snapshot.name for snapshot in seal.start_again(world.ctx)] == started == ["left"]
    await world.remove_all()


async def test_who_waits_for_a_seal_takes_it_from_whoever_is_at_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    taken = await world.snapshot("web")

    def start(ctx: Context, snapshot: Snapshot) -> ProcessRef:
        """Find, as a process of ours may, that another one was quicker; it is done a moment later."""
        seal.seal(ctx, snapshot.id)
        return ended

    ended = end_a_process()
    monkeypatch.setattr(seal, "start", start)
    sealed = await seal.finish(world.ctx, taken)
    assert sealed.state is SnapshotState.SEALED
    monkeypatch.delattr(seal, "start")  # one that is sealed is not begun again
    assert await seal.finish(world.ctx, taken) == sealed
    await world.remove_all()


async def test_a_seal_that_fails_is_told_with_what_it_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    taken = await world.snapshot("web")

    def start(ctx: Context, snapshot: Snapshot) -> ProcessRef:
        (ctx.layout.snapshot(snapshot.id) / seal.LOG).write_text("disk-full: no room\n")
        return ended

    ended = end_a_process()
    monkeypatch.setattr(seal, "start", start)
    with pytest.raises(StoreError) as caught:
        await seal.finish(world.ctx, taken)
    assert (caught.value.code, caught.value.seen) == ("not-sealed", "disk-full: no room")
    assert "snapshot seal web-1" in caught.value.next_step
    await world.remove_all()


async def test_who_seals_a_snapshot_that_is_removed_keeps_his_lock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes when he lets go of it, as those of a snapshot that nobody seals go with the snapshot."""
    await world.run("web")
    taken = await world.snapshot("web")
    lock = world.ctx.layout.lock(f"seal-{taken.id}")

    def removed_meanwhile(ctx: Context, snapshot: Snapshot) -> None:
        remover = threading.Thread(target=lambda: asyncio.run(remove.remove_snapshot(ctx, snapshot.id)))
        remover.start()
        remover.join()
        assert locks.is_held(lock)
        raise NotFound("its parts are gone")

    monkeypatch.setattr(parts, "check", removed_meanwhile)
    monkeypatch.setattr(seal, "open_context", lambda settings: world.ctx)
    monkeypatch.setattr(priority, "give_way", lambda: None)
    assert seal.main([str(world.home), str(world.hot), taken.id]) == 1
    assert world.ctx.snapshots.list() == []
    assert not lock.exists()
    await world.remove_all()


async def test_the_locks_of_a_removed_snapshot_go(world: World) -> None:
    await world.run("web")
    taken = await world.snapshot("web")
    seal.seal(world.ctx, taken.id)
    await world.clone("web-1")
    recheck.check(world.ctx, taken.id)
    locks_of = [path.name for path in world.ctx.layout.locks.glob(f"*-{taken.id}")]
    assert sorted(locks_of) == [f"{kind}-{taken.id}" for kind in ("evidence", "recheck", "seal", "snapshot")]
    await remove.remove_snapshot(world.ctx, taken.id)
    assert list(world.ctx.layout.locks.glob(f"*-{taken.id}")) == []
    await world.remove_all()


async def test_one_machine_alone_is_settled(world: World) -> None:
    for name in ("web", "db"):
        made = await world.run(name)
        world.ctx.journal(made.id).begin("stop")
    assert await repair.settle(world.ctx, "web") == ["web"]
    assert await repair.settle(world.ctx, "web") == []
    assert world.ctx.journal(world.machine("db").id).read() is not None
    with pytest.raises(NotFound):
        await repair.settle(world.ctx, "nobody")
    await world.remove_all()
