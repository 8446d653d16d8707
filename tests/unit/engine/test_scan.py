"""The clone-safety scan of a machine, as its guest is, and what a policy makes of it."""

from __future__ import annotations

import pytest

from liveclone.engine import run, scan
from liveclone.errors import GuestError, Interrupted, NotFound, Refused
from liveclone.model.scan import Action, Remedy

from .world import World

KEYTAB = "/etc/krb5.keytab"


async def test_what_is_found_is_judged(world: World) -> None:
    await world.run("web")
    assert (await scan.scan(world.ctx, "web")).findings == ()
    await world.write("web", KEYTAB, "key")
    await world.write("web", "/etc/ssl/private/web.key", "key")
    for policy, keytab, key in (
        ("open", Action.WARN, Action.ALLOW),
        ("default", Action.REFUSE, Action.WARN),
        ("strict", Action.REFUSE, Action.REFUSE),
    ):
        scanned = await scan.scan(world.ctx, "web", policy)
        assert [(one.check, one.subject, one.remedy) for one in scanned.findings] == [
            ("enrolments", KEYTAB, Remedy.REFUSE),
            ("secret-files", "/etc/ssl/private/web.key", Remedy.ACCEPT),
        ]
        assert [verdict.action for verdict in scanned.verdicts] == [keytab, key]
        assert "mounts" in scanned.checks
    await world.check_runs("web")
    await world.remove_all()


async def test_a_snapshot_is_refused_before_anything_is_touched(world: World) -> None:
    before = await world.run("web")
    await world.write("web", KEYTAB, "key")
    await world.write("web", "/etc/ssl/private/web.key", "key")
    with pytest.raises(Refused) as caught:
        await world.snapshot("web")
    error = caught.value
    assert (error.code, error.source_state) == ("unsafe", "running, not touched")
    assert error.seen.startswith(f"enrolments: {KEYTAB} (")
    assert "web.key" not in error.seen
    assert "liveclone scan web" in error.next_step
    assert world.machine("web") == before
    assert world.ctx.snapshots.list() == []
    assert await world.find_faults() == []
    with pytest.raises(Refused) as strict:
        await world.snapshot("web", policy="strict")
    assert "web.key" in strict.value.seen
    taken = await world.snapshot("web", policy="open")
    assert taken.scan is not None
    assert [verdict.action for verdict in taken.scan.verdicts] == [Action.WARN, Action.ALLOW]
    assert world.ctx.snapshots.list()[0].scan == taken.scan
    assert "scan" in taken.capture.steps_ms
    await world.remove_all()


async def test_a_policy_that_is_none_takes_no_snapshot(world: World) -> None:
    before = await world.run("web")
    with pytest.raises(NotFound) as missing:
        await world.snapshot("web", policy="loose")
    assert missing.value.code == "no-policy"
    assert world.machine("web") == before
    await world.remove_all()


async def test_a_source_that_dies_while_it_is_looked_at(world: World) -> None:
    await world.run("web", faults="web:die:scan")
    with pytest.raises((GuestError, Interrupted)) as caught:
        await world.snapshot("web")
    assert caught.value.source_state.startswith("stopped")
    assert caught.value.next_step == "liveclone start web"
    await run.start(world.ctx, "web")
    assert await world.find_faults() == []
    await world.remove_all()


async def test_an_agent_from_before_the_scan_is_a_check_that_failed() -> None:
    class Agent:
        name = "web"

        async def call(self, name: str, **options: object) -> dict[str, object]:
            raise GuestError("no such call", code="agent-unknown-call")

    findings, failed, _, _ = await scan.look(Agent())  # type: ignore[arg-type]
    assert findings == ()
    assert [one.check for one in failed] == ["scan"]


async def test_a_machine_that_does_not_run_or_a_policy_that_is_none(world: World) -> None:
    await world.run("web")
    with pytest.raises(NotFound) as missing:
        await scan.scan(world.ctx, "web", "loose")
    assert missing.value.code == "no-policy"
    await run.stop(world.ctx, "web", force=True)
    with pytest.raises(NotFound) as stopped:
        await scan.scan(world.ctx, "web")
    assert stopped.value.code == "not-running"
    await world.remove_all()


async def test_an_agent_that_reports_nonsense() -> None:
    class Agent:
        name = "web"

        async def call(self, name: str, **options: object) -> dict[str, object]:
            return {"findings": [{"check": 7}], "failed": [], "checks": [], "took_ms": 1.0}

    with pytest.raises(GuestError) as bad:
        await scan.look(Agent())  # type: ignore[arg-type]
    assert bad.value.code == "bad-report"
