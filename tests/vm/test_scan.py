"""The clone-safety scan of a real guest: what is planted is found, and what is not there is not."""

from __future__ import annotations

import pytest

from liveclone.engine import scan
from liveclone.errors import Refused
from liveclone.model.machine import Machine
from liveclone.model.scan import Action, Remedy, ScanFinding
from tests.machines import Lab

SECRET = "hunter2-hunter2"
PLANT = f"""
mkdir -p /root/.ssh /etc/liveclone/hooks.d/cloned
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
echo key > /etc/krb5.keytab
DB_PASSWORD={SECRET} setsid sleep 600 </dev/null >/dev/null 2>&1 &
"""


def subjects(found: tuple[ScanFinding, ...], check: str) -> list[str]:
    return [one.subject for one in found if one.check == check]


def generators(found: tuple[ScanFinding, ...]) -> list[tuple[str, Remedy]]:
    return [(one.subject, one.remedy) for one in found if one.check == "generators"]


def test_what_is_planted_is_found(lab: Lab, clone: Machine) -> None:
    before = lab.wait(scan.scan(lab.ctx, clone.name))
    assert before.failed == ()
    for check in ("containers", "enrolments", "environments", "key-agents", "mounts", "secret-files"):
        assert subjects(before.findings, check) == []
    assert generators(before.findings) == [("warm-app.service", Remedy.RESTART)]
    assert before.of(Action.REFUSE) == ()

    lab.shell(clone, PLANT)
    after = lab.wait(scan.scan(lab.ctx, clone.name))
    assert subjects(after.findings, "secret-files") == ["/root/.ssh/id_ed25519"]
    assert subjects(after.findings, "enrolments") == ["/etc/krb5.keytab"]
    (sleep,) = [one for one in after.findings if one.check == "environments"]
    assert sleep.subject.startswith("sleep (pid ")
    assert sleep.seen == "was started with DB_PASSWORD"
    assert SECRET not in str(after)
    assert len(after.of(Action.REFUSE)) == 1

    hook = "/etc/liveclone/hooks.d/cloned/10-warm-app"
    lab.shell(clone, f"printf '#!/bin/sh\\n' >{hook}; chmod 755 {hook}")
    hooked = lab.wait(scan.scan(lab.ctx, clone.name, "strict"))
    assert generators(hooked.findings) == [("warm-app.service", Remedy.HOOK)]

    with pytest.raises(Refused) as caught:
        lab.snapshot(clone)
    assert caught.value.code == "unsafe"
    assert "/etc/krb5.keytab" in caught.value.seen
    lab.shell(clone, "rm /etc/krb5.keytab")
    taken = lab.snapshot(clone)
    assert taken.scan is not None
    assert subjects(taken.scan.findings, "secret-files") == ["/root/.ssh/id_ed25519"]
    lab.remove_snapshot(taken)
