"""Applications that take part: who does not acknowledge is named, no clone is ready without them, the source runs on."""

from __future__ import annotations

import pytest

from liveclone.drivers.fake import application
from liveclone.engine import agent, identify
from liveclone.errors import GuestError

from .world import World, failing

APP = "*:app:shop"


async def heard(world: World, name: str) -> list[str]:
    return (await world.read(name, application.LOG)).split()


async def test_all_are_told_and_a_clone_that_cannot_be_renewed_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web", faults=APP)
    with failing(APP):  # for the process that takes over
        taken = await world.snapshot("web")
    assert taken.warnings == ()
    assert await heard(world, "web") == [
        "cloned",
        "prepare",
        "resumed",
    ]  # the first: it got its first identity
    with monkeypatch.context() as impatient:
        impatient.setattr(identify, "IDENTIFY_DEADLINE_S", 1.5)
        impatient.setattr(agent, "_SLACK_S", 3.0)
        faults = f"{APP},bad:object:cloned,silent:ignore:cloned"
        good, bad, silent = await world.clone("web-1", 3, names=["good", "bad", "silent"], faults=faults)
    assert good.error is None and good.evidence is not None and good.evidence.verified
    assert await heard(world, "good") == ["cloned", "prepare", "cloned"]
    for result, words in ((bad, "asked to fail"), (silent, "it did not acknowledge within")):
        assert isinstance(result.error, GuestError)
        assert result.error.code == "not-verified"
        assert "application shop (pid " in result.error.seen and f"at cloned: {words}" in result.error.seen
        assert result.error.source_state == "not touched"
    assert sorted(machine.name for machine in world.ctx.machines.list()) == ["good", "web"]
    assert await world.find_faults() == []
    await world.remove_all()


async def test_one_that_refuses_at_prepare_calls_the_snapshot_off(world: World) -> None:
    await world.run("web", faults=f"{APP},web:app:other,web:object:prepare")
    with pytest.raises(GuestError) as caught:
        await world.snapshot("web")
    assert caught.value.code == "agent-application-failed"
    assert "shop (pid " in caught.value.seen and "asked to fail" in caught.value.seen
    assert caught.value.source_state == "running"
    await world.check_runs("web")
    assert sorted(await heard(world, "web")) == sorted(["cloned", "prepare", "resumed"] * 2)
    assert world.ctx.snapshots.list() == []
    assert await world.find_faults() == []
    await world.remove_all()


async def test_one_that_fails_after_a_snapshot_is_a_warning(world: World) -> None:
    faults = f"{APP},web:object:resumed"
    await world.run("web", faults=faults)
    with failing(faults):  # for the process that takes over
        taken = await world.snapshot("web")
    (warning,) = taken.warnings
    assert warning.startswith("application shop (pid ") and warning.endswith(
        "of web: at resumed: asked to fail"
    )
    await world.check_runs("web")
    await world.remove_all()


async def test_a_unit_that_cannot_be_restarted_speaks_against_a_clone(world: World) -> None:
    """The fake guest has no systemctl."""
    await world.run("web")
    await world.write("web", "/etc/liveclone/restart", "cache.service\n")
    await world.snapshot("web")
    (result,) = await world.clone("web-1")
    assert isinstance(result.error, GuestError)
    assert "restart of cache.service: " in result.error.seen and "systemctl" in result.error.seen
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    await world.remove_all()
