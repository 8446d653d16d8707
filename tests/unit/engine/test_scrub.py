"""A scrubbed snapshot: the secrets leave the guest, are not in what is captured, and come back, whatever happens."""

from __future__ import annotations

import pytest

from liveclone.engine import agent as agents
from liveclone.engine import repair, run, scrub, search, views
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.errors import Conflict, GuestError, LivecloneError, Refused
from liveclone.formats.needles import Secret
from liveclone.model.snapshot import CaptureMethod

from .world import SCRUB, World, failing

TOKEN = "gho_16C7e42F292c6912E7710c838347Ae178B4a"
SECRETS = {
    "/srv/token": f"token {TOKEN}\n",
    "/root/.bash_history": "mysql --password=correct-horse-battery\nls\n",
}
PASSWD = "root:x:0:0:root:/root:/bin/sh\n"


async def plant(world: World) -> None:
    await world.run("web")
    for name, text in (SECRETS | {"/etc/passwd": PASSWD}).items():
        await world.write("web", name, text)


async def check_all_back(world: World) -> None:
    for name, text in SECRETS.items():
        assert await world.read("web", name) == text.strip()
    assert not scrub.is_due(world.ctx, world.machine("web"))


@pytest.mark.parametrize("method", CaptureMethod)
async def test_secrets_are_out_of_the_memory_and_back_in_the_source(
    world: World, method: CaptureMethod
) -> None:
    await plant(world)
    if method is not CaptureMethod.HANDOVER:
        await world.snapshot("web", "first")
    taken = await world.snapshot("web", "clean", method, scrub=SCRUB)
    await check_all_back(world)
    assert taken.scrub is not None
    assert taken.scrub.secrets == 2
    assert {hit.part for hit in taken.scrub.found} <= set(taken.scrub.searched_bytes) - {
        "memory",
        "device state",
    }
    plain = await world.snapshot("web", "plain")
    assert plain.scrub is None
    needles = [Secret("token", TOKEN.encode())]
    assert "memory" in {hit.part for hit in (await search.prove(world.ctx, "plain", needles)).found}
    (clone,) = await world.clone("clean")
    assert clone.error is None
    for name in SECRETS:
        assert await world.read(clone.name, name) == ""
    await world.remove_all()


async def test_what_is_written_in_the_meantime_is_kept(world: World) -> None:
    await plant(world)
    machine = world.machine("web")
    first = scrub.Taken(
        files=(
            scrub.TakenFile(
                path="/srv/token",
                history=False,
                data="b2xk",
                mode=0o640,
                uid=0,
                gid=0,
                atime_ns=1,
                mtime_ns=2,
            ),
        )
    )
    scrub._keep(world.ctx, machine, first)
    assert await world.repair() == ["web"]
    assert await world.read("web", "/srv/token") == "old"
    assert await world.read("web", "/srv/token.new") == SECRETS["/srv/token"].strip()
    await world.remove_all()


@pytest.mark.parametrize("call", ["scrub_stop", "scrub_read", "scrub_remove", "renew", "scrub_clean"])
async def test_a_guest_that_dies_on_the_way_has_its_secrets_after_its_next_start(
    world: World, call: str
) -> None:
    await plant(world)
    await run.stop(world.ctx, "web", force=True)
    with failing(f"web:die:{call}"):
        await run.start(world.ctx, "web")
    with pytest.raises(LivecloneError):
        await world.snapshot("web", scrub=SCRUB)
    await run.start(world.ctx, "web")
    await check_all_back(world)
    assert await world.find_faults() == []
    await world.remove_all()


async def test_who_does_not_take_them_back_is_named_until_it_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant(world)
    await run.stop(world.ctx, "web", force=True)
    assert await world.repair() == []
    with failing("web:hang:scrub_restore"):
        await run.start(world.ctx, "web")
    monkeypatch.setattr(scrub, "DEADLINE_S", 0.5)
    for again in (
        lambda: world.snapshot("web", method=CaptureMethod.BACKGROUND, scrub=SCRUB),
        world.repair,
        lambda: repair.settle(world.ctx, "web"),
    ):
        with pytest.raises(LivecloneError) as caught:
            await again()
        assert "liveclone repair" in caught.value.next_step
        (summary,) = await views.list_machines(world.ctx)
        assert summary.needs_repair
    await run.stop(world.ctx, "web", force=True)
    assert await world.repair() == []  # it comes back with the next start, and by nothing else
    assert scrub.is_due(world.ctx, world.machine("web"))
    await run.start(world.ctx, "web")
    await check_all_back(world)
    await world.remove_all()


async def test_a_path_that_is_not_there_is_refused_and_nothing_is_missing(world: World) -> None:
    await plant(world)
    with pytest.raises(GuestError) as caught:
        await world.snapshot("web", scrub=Scrubbing(paths=("/srv/token", "/srv/nothing")))
    assert caught.value.code == "agent-no-such-file"
    await check_all_back(world)
    with pytest.raises(GuestError) as caught:
        await world.snapshot("web", scrub=Scrubbing(units=("nothing.service",)))
    assert caught.value.code == "agent-no-unit"
    await check_all_back(world)
    assert await world.find_faults() == []
    await world.remove_all()


async def test_secrets_that_are_not_back_yet_are_never_overwritten(world: World) -> None:
    await plant(world)
    machine = world.machine("web")
    handle = await world.ctx.driver.open(machine, world.ctx.layout.machine(machine.id))
    scrub._keep(world.ctx, machine, scrub.Taken())
    async with agents.connect(handle, "web") as agent:
        with pytest.raises(Conflict):
            await scrub.take_out(world.ctx, machine, handle, agent, (), ())
    await handle.close()
    assert scrub.is_due(world.ctx, machine)
    await world.remove_all()


async def test_only_a_proven_snapshot_is_for_others(world: World) -> None:
    await plant(world)
    taken = await world.snapshot("web", "plain")
    with pytest.raises(Refused) as caught:
        search.check_public(taken)
    assert caught.value.code == "not-proven"
    clean = await world.snapshot("web", "clean", scrub=SCRUB)
    assert clean.scrub is not None
    with pytest.raises(Refused):  # the fake disk never overwrites, so its layers hold what was there before
        search.check_public(clean)
    search.check_public(clean.replace(scrub=clean.scrub.replace(found=())))
    await world.remove_all()
