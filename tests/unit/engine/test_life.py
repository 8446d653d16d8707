"""From an image to a machine, to a snapshot, to clones, and to nothing: what users do, on the fake hypervisor."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from liveclone.engine import remove, run, seal
from liveclone.errors import Refused
from liveclone.model.identity import ItemStatus
from liveclone.model.machine import MemorySource
from liveclone.model.network import NetworkKind, Port
from liveclone.model.snapshot import CaptureMethod, SnapshotState

from .world import World

HANDOVER, BACKGROUND, STREAM = CaptureMethod.HANDOVER, CaptureMethod.BACKGROUND, CaptureMethod.STREAM


async def test_a_machine_from_an_image_has_an_identity_of_its_own(world: World, keys: None) -> None:
    first, second = await asyncio.gather(world.run("one"), world.run("two"))
    assert await world.read("one", "/etc/hostname") == "one"
    for file in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        assert await world.read("one", file) != await world.read("two", file)
    assert first.nics[0].mac != second.nics[0].mac
    assert first.nics[0].ip != second.nics[0].ip
    await world.check_runs("one")
    assert await world.find_faults() == []
    await world.remove_all()


async def test_the_whole_life(world: World, keys: None) -> None:
    source = await world.run("web")
    await world.write("web", "/srv/token", "warm")
    taken = await world.snapshot("web", "warm")
    assert taken.capture.method is HANDOVER
    assert taken.capture.pause_ns > 0
    assert {"prepare", "capture", "reconnect", "refresh"} <= taken.capture.steps_ms.keys()
    assert taken.source_generation == source.generation.uuid
    after = world.machine("web")
    assert after.process != source.process
    assert after.generation.counter == source.generation.counter + 1
    assert (after.nics, after.layers) == (source.nics, (taken.id,))

    results = await world.clone("warm", 3, names=["left", "right"])
    assert [result.name for result in results] == ["left", "right", "warm-c1"]
    for result in results:
        assert result.error is None
        assert result.machine is not None and result.evidence is not None
        assert result.evidence.verified
        assert result.machine.clone_of == taken.id
        assert await world.read(result.name, "/srv/token") == "warm"
        assert await world.read(result.name, "/etc/hostname") == result.name
        kinds = {item.item: item.status for item in result.evidence.items}
        assert kinds["machine_id"] is kinds["rng"] is ItemStatus.CHANGED
        assert kinds["network"] is ItemStatus.CONFIGURED
        assert result.steps_ms
    for file in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        values = {await world.read(name, file) for name in ("web", "left", "right", "warm-c1")}
        assert len(values) == 4
    members = world.ctx.evidence(taken.id).members()
    machines = {machine.id for machine in world.ctx.machines.list()}
    assert set(members) == machines
    for item in ("machine_id", "ssh_host_keys", "hostname"):
        digests = [i.after for evidence in members.values() for i in evidence.items if i.item == item]
        assert len(set(digests)) == len(digests) == 3, item
    draws = [i.after for evidence in members.values() for i in evidence.items if i.item == "rng"]
    assert len(set(draws)) == 4
    assert await world.find_faults() == []

    await world.remove("left")
    assert await world.find_faults() == []
    await remove.remove_snapshot(world.ctx, "warm")
    assert await world.find_faults() == []  # the others stand on its layer, which stays
    await world.remove_all()


@pytest.mark.parametrize("network", [NetworkKind.NONE, NetworkKind.USER])
async def test_networks(world: World, network: NetworkKind) -> None:
    ports = (Port(host_port=0, guest_port=80),) if network is NetworkKind.USER else ()
    machine = await world.run("web", network=network, ports=ports)
    taken = await world.snapshot("web")
    assert taken.network is network
    (result,) = await world.clone("web-1", ports=ports)
    assert result.machine is not None
    assert len(machine.nics) == len(result.machine.nics) == (0 if network is NetworkKind.NONE else 1)
    if ports:
        names = [await _ask(port.host_port) for m in (machine, result.machine) for port in m.ports]
        assert names == ["web", "web-1-c1"]
    assert await world.find_faults() == []
    await world.remove_all()


async def _ask(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.partition(b'"hostname": "')[2].partition(b'"')[0].decode()


async def test_each_machine_is_captured_as_its_memory_allows(world: World) -> None:
    await world.run("web")
    methods = [(await world.snapshot("web", method=STREAM)).capture.method]
    methods += [(await world.snapshot("web")).capture.method for _ in range(2)]
    await world.clone("web-3")
    methods.append((await world.snapshot("web-3-c1")).capture.method)
    await world.clone("web-3-c1-1")
    assert methods == [STREAM, HANDOVER, BACKGROUND, BACKGROUND]
    assert world.machine("web-3-c1-1-c1").layers[0] == world.ctx.snapshots.find("web-3-c1-1").id
    with pytest.raises(Refused) as caught:
        await world.snapshot("web", method=HANDOVER)
    assert caught.value.code == "no-handover"
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_sealed_snapshot_outlives_the_hot_folder(world: World, sealing: None) -> None:
    await world.run("web")
    await world.write("web", "/srv/token", "durable")
    taken = await world.snapshot("web", wait_sealed=True)
    assert taken.state is SnapshotState.SEALED
    assert all(part.digest for part in (taken.memory, taken.disk, taken.device_state))
    await world.remove("web")
    assert taken.hot is not None
    Path(taken.hot.path).unlink()  # as a reboot does
    (result,) = await world.clone("web-1")
    assert result.machine is not None and result.machine.memory is not None
    assert result.machine.memory.source is MemorySource.PRIVATE_DISK
    assert await world.read("web-1-c1", "/srv/token") == "durable"
    again = await world.snapshot("web-1-c1", wait_sealed=True)
    assert again.capture.method is STREAM
    with pytest.raises(Refused) as caught:
        await world.snapshot("web-1-c1", method=BACKGROUND)
    assert caught.value.code == "no-background"
    await world.remove_all()


async def test_to_seal_twice_is_to_seal_once(world: World) -> None:
    await world.run("web")
    taken = await world.snapshot("web")
    assert taken.state is SnapshotState.READY
    sealed = seal.seal(world.ctx, taken.id)
    assert sealed.state is SnapshotState.SEALED
    assert seal.seal(world.ctx, taken.id) == sealed == world.ctx.snapshots.load(taken.id)
    (result,) = await world.clone("web-1")
    assert result.error is None
    await world.remove_all()


async def test_a_machine_stops_and_starts_from_its_disk(world: World) -> None:
    made = await world.run("web")
    await world.write("web", "/srv/token", "kept")
    identity = await world.read("web", "/etc/machine-id")
    stopped = await run.stop(world.ctx, "web", force=False)
    assert (stopped.process, stopped.memory) == (None, None)
    assert world.processes() == []
    assert await world.find_faults() == []
    assert await run.stop(world.ctx, "web", force=False) == stopped
    started = await run.start(world.ctx, "web")
    assert (started.nics, started.id) == (made.nics, made.id)
    assert await world.read("web", "/etc/machine-id") == identity
    assert await world.read("web", "/srv/token") == "kept"
    assert await run.start(world.ctx, "web") == started
    await run.stop(world.ctx, "web", force=True)
    await run.start(world.ctx, "web")
    assert await world.read("web", "/srv/token") == "kept"
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_machine_that_ignores_its_power_button_runs_on(world: World) -> None:
    from liveclone.errors import TimedOut

    await world.run("web", faults="web:ignore:power")
    with pytest.raises(TimedOut) as caught:
        await run.stop(world.ctx, "web", force=False, deadline_s=0.1)
    assert caught.value.code == "still-running"
    assert await world.find_faults() == []
    await run.stop(world.ctx, "web", force=True)
    await world.remove_all()


async def test_a_machine_that_ends_before_it_answers_has_stopped(world: World) -> None:
    await world.run("web", faults="web:abrupt:power")
    stopped = await run.stop(world.ctx, "web", force=False)
    assert stopped.process is None
    assert world.processes() == []
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_clone_stops_and_starts_with_its_own_identity(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    await world.clone("web-1")
    identity = await world.read("web-1-c1", "/etc/machine-id")
    await run.stop(world.ctx, "web-1-c1", force=False)
    started = await run.start(world.ctx, "web-1-c1")
    assert started.memory is not None and started.memory.source is MemorySource.SHARED_HOT
    assert await world.read("web-1-c1", "/etc/machine-id") == identity
    assert await world.read("web-1-c1", "/etc/hostname") == "web-1-c1"
    assert (await world.snapshot("web-1-c1")).capture.method is HANDOVER
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_snapshot_outlives_its_source(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    await world.remove("web")
    assert await world.find_faults() == []
    (result,) = await world.clone("web-1")
    assert result.error is None
    await world.remove_all()


async def test_a_source_that_starts_anew_does_not_touch_its_snapshot(world: World) -> None:
    await world.run("web")
    await world.write("web", "/srv/token", "captured")
    taken = await world.snapshot("web")
    await world.clone("web-1", names=["before"])
    await run.stop(world.ctx, "web", force=False)
    assert taken.hot is not None and Path(taken.hot.path).exists()
    await run.start(world.ctx, "web")
    await world.check_runs("before")
    (result,) = await world.clone("web-1", names=["after"])
    assert result.error is None
    for name in ("before", "after"):
        assert await world.read(name, "/srv/token") == "captured"
    assert await world.find_faults() == []
    await world.remove_all()


async def test_two_snapshots_of_one_source_at_once(world: World) -> None:
    await world.run("web")
    taken = await asyncio.gather(world.snapshot("web", "one"), world.snapshot("web", "two"))
    assert sorted(t.capture.method.value for t in taken) == ["background", "handover"]
    assert (await world.clone("one"))[0].error is None
    assert (await world.clone("two"))[0].error is None
    assert await world.find_faults() == []
    await world.remove_all()


async def test_two_commands_clone_at_once(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    both = await asyncio.gather(
        world.clone("web-1", 2, names=["a", "b"]), world.clone("web-1", 2, names=["c", "d"])
    )
    assert [result.error for results in both for result in results] == [None] * 4
    assert await world.find_faults() == []
    await world.remove_all()
