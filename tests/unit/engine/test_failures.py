"""When a guest or the hypervisor fails in the middle: the source runs on as it was, a bad clone is gone, nothing is left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from liveclone import trace
from liveclone.engine import agent, identify, run, wiring
from liveclone.errors import GuestError, HypervisorError, Interrupted, LivecloneError, Refused, TimedOut
from liveclone.host import process
from liveclone.model.machine import MachineState
from liveclone.model.snapshot import CaptureMethod

from .world import World

HANDOVER, BACKGROUND, STREAM = CaptureMethod.HANDOVER, CaptureMethod.BACKGROUND, CaptureMethod.STREAM


# A clone that fails


BAD_CLONES = (
    ("lie:machine_id", "not-verified", "machine_id: its new value is the snapshot's"),
    ("keep:hostname", "not-verified", "hostname: it still has the snapshot's value"),
    ("fail:machine_id", "not-verified", "machine_id: its reset failed: RuntimeError: asked to fail"),
    ("omit:rng", "not-verified", "rng: the agent did not report it"),
    ("die:identify", "guest-gone", "identify"),
    ("refuse:start", "cannot-start", "start was refused"),
    ("refuse:load", "fake-refused", "load was refused"),
    ("refuse:plug", "fake-refused", "plug was refused"),
)


async def test_bad_clones_are_gone_and_their_siblings_are_unharmed(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    bad = [f"bad{number}" for number in range(len(BAD_CLONES))]
    faults = ",".join(f"{name}:{fault}" for name, (fault, _, _) in zip(bad, BAD_CLONES, strict=True))
    results = await world.clone("web-1", len(bad) + 2, names=["first", *bad, "last"], faults=faults)
    for result, (fault, code, words) in zip(results[1:-1], BAD_CLONES, strict=True):
        assert result.error is not None and result.machine is None, fault
        assert result.error.code == code, result.error.fields()
        assert words in result.error.message + result.error.seen
        assert result.error.source_state == "not touched"
    assert results[0].error is None and results[-1].error is None
    assert sorted(machine.name for machine in world.ctx.machines.list()) == ["first", "last", "web"]
    assert await world.find_faults() == []
    (again,) = await world.clone("web-1", names=["bad0"])
    assert again.error is None
    await world.remove_all()


async def test_agents_that_hang_are_errors_that_name_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    await world.snapshot("web")
    with monkeypatch.context() as impatient:
        impatient.setattr(identify, "IDENTIFY_DEADLINE_S", 0.7)
        impatient.setattr(wiring, "CONFIGURE_DEADLINE_S", 0.7)
        impatient.setattr(agent, "_SLACK_S", 1.3)
        faults = "a:hang:identify,b:mute:agent,c:hang:network"
        results = await world.clone("web-1", 3, names=["a", "b", "c"], faults=faults)
    codes = [result.error.code if result.error else "" for result in results]
    assert codes == ["agent-deadline", "agent-silent", "agent-deadline"]
    for result, call in zip(results, ("identify", "identify", "network"), strict=True):
        assert result.error is not None
        assert call in result.error.message and result.name in result.error.message
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    assert await world.find_faults() == []
    await world.remove_all()


async def test_of_two_clones_with_one_value_one_is_refused(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    results = await world.clone("web-1", 3, faults="*:twin:machine_id")
    errors = [result.error for result in results if result.error is not None]
    assert len(errors) == 2
    for error in errors:
        assert "its new value is that of web-1-c" in error.message
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_torn_line_before_every_answer_is_no_harm(world: World) -> None:
    await world.run("web", faults="*:torn:agent")
    await world.snapshot("web")
    (result,) = await world.clone("web-1", faults="*:torn:agent")
    assert result.error is None
    await world.remove_all()


async def test_a_failed_clone_that_is_kept_never_gets_a_nic(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    (result,) = await world.clone("web-1", names=["bad"], faults="bad:lie:rng", keep_failed=True)
    assert isinstance(result.error, GuestError)
    kept = world.machine("bad")
    assert kept.quarantined
    await world.check_runs("bad", nics=())
    evidence = world.ctx.evidence(world.ctx.snapshots.find("web-1").id).load(kept.id)
    assert evidence is not None and not evidence.verified
    assert await world.find_faults() == []
    with pytest.raises(Refused) as caught:
        await world.snapshot("bad")
    assert caught.value.code == "quarantined"
    await run.stop(world.ctx, "bad", force=True)
    with pytest.raises(Refused) as caught:
        await run.start(world.ctx, "bad")
    assert caught.value.code == "quarantined"
    await world.remove_all()


# A machine that does not come up


async def test_machines_that_do_not_come_up_are_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(identify, "IDENTIFY_DEADLINE_S", 0.7)
        impatient.setattr(identify, "BOOT_DEADLINE_S", 0.7)
        impatient.setattr(agent, "_SLACK_S", 1.3)
        faults = "a:refuse:start,b:mute:agent,c:hang:identify,d:die:identify,e:refuse:plug"
        results = await asyncio.gather(
            *(world.run(name, faults=faults) for name in "abcde"), return_exceptions=True
        )
    assert [type(result) for result in results] == [
        HypervisorError,
        TimedOut,
        TimedOut,
        GuestError,
        HypervisorError,
    ]
    assert await world.find_faults() == []
    assert world.ctx.machines.list() == []
    await world.run("a")
    await world.remove_all()


# A snapshot that fails


def _bad_snapshots() -> Iterator[object]:
    for fault, method in (
        ("stuck:nic", HANDOVER),
        ("stuck:nic", BACKGROUND),
        ("stuck:nic", STREAM),
        ("refuse:save", HANDOVER),
        ("refuse:freeze", BACKGROUND),
        ("refuse:protect", BACKGROUND),
        ("refuse:drain", BACKGROUND),
        ("refuse:freeze", STREAM),
        ("refuse:copy", STREAM),
        ("refuse:finish", STREAM),
    ):
        yield pytest.param(fault, method, id=f"{fault}-{method.value}")


@pytest.mark.parametrize(("fault", "method"), list(_bad_snapshots()))
async def test_a_failed_snapshot_leaves_the_source_as_it_was(
    world: World, fault: str, method: CaptureMethod
) -> None:
    before = await world.run("web", faults=f"web:{fault}")
    await world.write("web", "/srv/token", "kept")
    with pytest.raises(LivecloneError) as caught:
        await world.snapshot("web", method=method)
    assert caught.value.source_state.startswith("running"), caught.value.fields()
    after = world.machine("web")
    assert (after.process, after.disk, after.memory) == (before.process, before.disk, before.memory)
    assert world.ctx.snapshots.list() == []
    assert await world.find_faults() == []
    assert await world.read("web", "/srv/token") == "kept"
    await world.remove_all()


@pytest.mark.parametrize(("fault", "method"), [("drain", BACKGROUND), ("finish", STREAM)])
async def test_a_layer_that_cannot_be_taken_off_again_stays(
    world: World, fault: str, method: CaptureMethod
) -> None:
    before = await world.run("web", faults=f"web:refuse:{fault},web:refuse:thaw")
    await world.write("web", "/srv/token", "kept")
    with pytest.raises(LivecloneError) as caught:
        await world.snapshot("web", method=method)
    assert caught.value.source_state == "running, on a disk layer that could not be taken off again"
    assert caught.value.next_step.endswith("liveclone repair web")
    assert world.machine("web") == before
    await world.write("web", "/srv/later", "kept as well")
    assert await world.repair() == ["web"]
    after = world.machine("web")
    assert after.process == before.process
    assert after.disk != before.disk
    assert len(after.layers) == len(before.layers) + 1
    assert world.ctx.snapshots.list() == []
    assert await world.find_faults() == []
    await run.stop(world.ctx, "web", force=True)
    await run.start(world.ctx, "web")
    assert await world.read("web", "/srv/token") == "kept"
    assert await world.read("web", "/srv/later") == "kept as well"
    await world.remove_all()


async def test_a_guest_that_does_not_get_ready_is_not_captured(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await world.run("web", faults="web:hang:prepare")
    monkeypatch.setattr(identify, "PREPARE_DEADLINE_S", 0.3)
    with pytest.raises(TimedOut) as caught:
        await world.snapshot("web")
    assert caught.value.code == "agent-deadline"
    assert caught.value.source_state.startswith("running")
    assert world.machine("web") == before
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_successor_that_does_not_start_is_no_harm(world: World) -> None:
    from .world import failing

    before = await world.run("web")
    for fault in ("refuse:start", "refuse:load"):
        with failing(f"web:{fault}"), pytest.raises(HypervisorError) as caught:
            await world.snapshot("web", method=HANDOVER)
        assert caught.value.source_state.startswith("running")
        assert world.machine("web") == before
        assert await world.find_faults() == []
    await world.snapshot("web", method=HANDOVER)
    await world.remove_all()


async def test_a_source_that_was_not_renewed_is_mended_by_repair(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web", faults="web:hang:resume")
    monkeypatch.setattr(identify, "IDENTIFY_DEADLINE_S", 0.3)
    with pytest.raises(TimedOut) as caught:
        await world.snapshot("web", method=STREAM)
    assert caught.value.next_step.startswith("liveclone repair web")
    assert [taken.name for taken in world.ctx.snapshots.list()] == ["web-1"]
    await world.check_runs("web")
    assert await world.repair() == ["web"]
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_source_whose_process_dies_is_said_to_be_stopped(world: World) -> None:
    await world.run("web", faults="web:die:prepare")
    with pytest.raises((GuestError, Interrupted)):
        await world.snapshot("web")
    assert world.processes() == []
    await world.repair()
    started = await run.start(world.ctx, "web")
    assert started.process is not None
    assert await world.find_faults() == []
    await world.snapshot("web")
    await world.remove_all()


@pytest.mark.parametrize("point", ["background.paused", "background.resumed", "stream.frozen"])
async def test_a_source_that_dies_behind_the_freeze_keeps_what_it_wrote_since(
    world: World, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    await world.snapshot("web", "base")
    before = world.machine("web")
    assert before.process is not None
    source = before.process

    def at(here: str) -> None:
        if here == point:
            process.send(source, signal.SIGKILL)
            assert process.wait_gone(source, 10.0)

    monkeypatch.setattr(trace, "at", at)
    with pytest.raises(Interrupted) as caught:
        await world.snapshot("web", "new", CaptureMethod(point.partition(".")[0]))
    assert caught.value.source_state.startswith("stopped")
    assert caught.value.next_step == "liveclone start web"
    assert [taken.name for taken in world.ctx.snapshots.list()] == ["base"]
    after = world.machine("web")
    assert (after.disk == before.disk) == (point == "background.paused")
    assert len(after.layers) == len(before.layers) + (after.disk != before.disk)
    assert await world.find_faults() == []
    await run.start(world.ctx, "web")
    await world.check_runs("web")
    await world.remove_all()


async def test_the_state_of_a_machine_is_asked_of_its_process(world: World) -> None:
    await world.run("web")
    await world.with_handle("web", lambda handle: handle.pause())
    assert await world.with_handle("web", lambda handle: handle.state()) is MachineState.PAUSED
    await run.start(world.ctx, "web")
    await world.check_runs("web")
    await world.remove_all()
