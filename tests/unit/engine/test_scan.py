"""The clone-safety scan of a machine, as its guest is, and what a policy makes of it."""

from __future__ import annotations

import pytest

from liveclone.engine import run, scan
from liveclone.errors import GuestError, NotFound
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
