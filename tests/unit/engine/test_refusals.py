"""What is refused before anything is touched: names, numbers, sizes, states, too little memory, damaged parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liveclone.engine import clone, clone_plan, remove, run, snapshot
from liveclone.engine.context import open_context
from liveclone.errors import Conflict, Corrupt, LivecloneError, NotFound, Refused, Unsupported
from liveclone.host import process
from liveclone.ids import check_name
from liveclone.model.network import NetworkKind, Port
from liveclone.units import MIB

from .world import RAM, World, open_world

HOSTILE = ("../x", "x" * 300, "-x", "X", "a b", "a/b", "a\0b", "ä", ".", "..")


async def refused(work: Any, code: str, kind: type[LivecloneError] = Refused) -> LivecloneError:
    with pytest.raises(kind) as caught:
        await work
    assert caught.value.code == code, caught.value.fields()
    assert caught.value.tried and caught.value.next_step
    return caught.value


async def test_hostile_names_make_nothing(world: World) -> None:
    for name in HOSTILE:
        with pytest.raises(Refused):
            check_name(name)
        await refused(world.run(name), "bad-name")
        await refused(world.clone(name), "no-snapshot", NotFound)
        await refused(world.snapshot(name), "no-machine", NotFound)
        await refused(remove.remove_machine(world.ctx, name, force=True), "no-machine", NotFound)
        await refused(remove.remove_snapshot(world.ctx, name), "no-snapshot", NotFound)
        with pytest.raises(LivecloneError):
            await run.run(world.ctx, run.Request(image=name))
    await world.remove_all()


async def test_names_that_are_taken(world: World) -> None:
    await world.run("web")
    await refused(world.run("web"), "name-taken")
    await world.snapshot("web", "warm")
    error = await refused(world.snapshot("web", "warm"), "name-taken")
    assert error.source_state == "running, not touched"
    for name in ("../x", "X", "x" * 300):
        await refused(world.snapshot("web", name), "bad-name")
        await refused(world.clone("warm", names=[name]), "bad-name")
    await refused(world.clone("warm", names=["web"]), "name-taken")
    await refused(world.clone("warm", 2, names=["x", "x"]), "name-taken")
    assert await world.find_faults() == []
    results = await world.clone("warm", 2, names=["warm-c1"])
    assert [result.name for result in results] == ["warm-c1", "warm-c2"]
    assert [result.name for result in await world.clone("warm")] == ["warm-c3"]
    await world.remove_all()


async def test_names_that_nobody_gave(world: World) -> None:
    assert (await world.run("")).name == "image-1"
    assert (await world.run("")).name == "image-2"
    assert [(await world.snapshot("image-1")).name for _ in range(2)] == ["image-1-1", "image-1-2"]
    await world.remove_all()


async def test_bad_numbers_and_sizes(world: World) -> None:
    for request, code in (
        ({"ram_bytes": 64 * MIB}, "bad-size"),
        ({"ram_bytes": RAM + 1}, "bad-size"),
        ({"vcpus": 0}, "bad-count"),
        ({"vcpus": 65}, "bad-count"),
        ({"network": NetworkKind.NONE, "ports": (Port(host_port=0, guest_port=80),)}, "no-network"),
    ):
        given = {"image": "image", "name": "web", "ram_bytes": RAM} | request
        await refused(run.run(world.ctx, run.Request(**given)), code)  # type: ignore[arg-type]
    await world.run("web")
    await world.snapshot("web")
    for count in (0, -1, clone_plan.MOST + 1):
        await refused(world.clone("web-1", count), "bad-count")
    await refused(world.clone("web-1", 2, ports=(Port(host_port=8080, guest_port=80),)), "bad-port")
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    assert await world.find_faults() == []
    await world.remove_all()


async def test_too_little_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.run("web")
    await world.snapshot("web")
    poor = World.__new__(World)
    poor.ctx = open_world(world.environment | {"LIVECLONE_RESERVE": "1000T"})
    error = await refused(poor.clone("web-1", 2), "no-memory")
    assert "2 clones of web-1" in error.message
    assert error.source_state == "not touched"
    await refused(poor.run("other"), "no-memory")
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    (result,) = await poor.clone("web-1", overcommit=True)
    assert result.error is None
    assert await world.find_faults() == []
    await world.remove_all()


async def test_wishes_and_states_with_which_nothing_can_be_captured(world: World) -> None:
    await world.run("web")
    await refused(world.snapshot("web", keep_overlay=True), "not-adopted")
    await world.check_runs("web")
    await world.with_handle("web", lambda handle: handle.pause())
    error = await refused(world.snapshot("web"), "not-running")
    assert error.source_state == "paused"
    await run.start(world.ctx, "web")
    await world.check_runs("web")
    await run.stop(world.ctx, "web", force=True)
    await refused(world.snapshot("web"), "not-running", NotFound)
    assert await world.find_faults() == []
    await world.remove_all()


async def test_a_running_machine_is_removed_only_by_force(world: World) -> None:
    await world.run("web")
    await refused(remove.remove_machine(world.ctx, "web", force=False), "still-running")
    await world.check_runs("web")
    await run.stop(world.ctx, "web", force=True)
    await remove.remove_machine(world.ctx, "web", force=False)
    await world.remove_all()


async def test_an_image_in_use_stays(world: World) -> None:
    await world.run("web")
    await refused(remove.remove_image(world.ctx, "image"), "image-in-use", Conflict)
    await world.remove_all()


async def test_a_damaged_snapshot_starts_nothing(world: World) -> None:
    await world.run("web")
    taken = await world.snapshot("web")
    assert taken.hot is not None
    folder = world.ctx.layout.snapshot(taken.id)
    for path in (folder / "state", folder / "key", folder / "manifest.json", Path(taken.hot.path)):
        whole = path.stat()
        path.chmod(0o600)
        with path.open("r+b") as file:
            data = file.read()
            at = data.index(b'"state"') + 3 if path.name == "manifest.json" else len(data) // 2
            file.seek(at)
            file.write(bytes([data[at] ^ 1]))
            if path.name == "key":
                file.truncate(len(data) - 1)
        with pytest.raises(Corrupt):
            await world.clone(taken.id if path.name != "manifest.json" else "web-1")
        assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
        with path.open("r+b") as file:
            file.write(data)
        path.chmod(whole.st_mode)
    await world.check_runs("web")


async def test_a_machine_whose_manifest_is_damaged_is_removed_by_its_id_and_force(world: World) -> None:
    """Nothing but its id is known: its process is found by the log it writes, and others keep what is theirs."""
    web, other = await world.run("web"), await world.run("other")
    path = world.ctx.layout.machine(web.id) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-2])
    for name, force in (("web", True), (web.id, False), ("other", True)):
        with pytest.raises(Corrupt) as refused:
            await remove.remove_machine(world.ctx, name, force=force)
        assert refused.value.on == str(path)
        assert f"liveclone remove --force {web.id}" in refused.value.next_step
    assert process.is_alive(web.process)
    assert (await remove.remove_machine(world.ctx, web.id, force=True)).id == web.id
    assert not process.is_alive(web.process)
    assert await world.find_faults() == []
    assert [machine.id for machine in world.ctx.machines.list()] == [other.id]
    await world.check_runs("other")


async def test_a_snapshot_of_another_hypervisor_starts_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    await world.snapshot("web")
    monkeypatch.setenv("LIVECLONE_FAKE_VERSION", "2.0.0")
    other = open_context(world.ctx.settings)
    results = await clone.start(other, clone.Request(snapshot="web-1", count=2))
    for result in results:
        assert isinstance(result.error, Unsupported)
        assert result.error.code == "other-hypervisor"
        assert result.error.source_state == "not touched"
    assert await world.find_faults() == []
    await world.remove_all()


async def test_an_unknown_name_is_told_with_its_neighbours(world: World) -> None:
    await world.run("webserver")
    error = await refused(
        snapshot.take(world.ctx, snapshot.Request(machine="websrver")), "no-machine", NotFound
    )
    assert "webserver" in error.next_step
    await world.remove_all()
