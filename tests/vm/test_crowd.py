"""Thirty-two clones of one snapshot: each verified, and asked afresh, with draws of all kinds, every pair is distinct."""

from __future__ import annotations

import pytest

from bench.crowd import wait_idle
from liveclone.engine import audit
from liveclone.model.audit import Role
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import Lab

pytestmark = pytest.mark.alone  # two processors are little for them as it is

COUNT = 32


def test_all_pairs_are_distinct(lab: Lab, snapshotted: Snapshot) -> None:
    machines = lab.clones(snapshotted, COUNT)
    try:
        # All do now what they had put off; an audit asks for more.
        lab.wait(wait_idle([machine.process.pid for machine in machines if machine.process]))
        check_distinct(lab, machines, snapshotted)
    finally:
        lab.remove(*machines)


def check_distinct(lab: Lab, machines: list[Machine], snapshotted: Snapshot) -> None:
    audited = lab.wait(audit.audit(lab.ctx, snapshotted.id))
    assert audited.equal == ()
    assert audited.left_out == ()
    clones = [member for member in audited.members if member.role is Role.CLONE]
    assert {machine.name for machine in machines} <= {member.name for member in clones}
    # The source was this snapshot: of all pairs only that one has something in common.
    count = len(audited.members)
    assert audited.pairs == count * (count - 1) // 2 - 1
    for nics in ([nic.mac for m in machines for nic in m.nics], [nic.ip for m in machines for nic in m.nics]):
        assert len(set(nics)) == COUNT
