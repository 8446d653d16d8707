"""Randomness in guests without VMGENID: our own reseed carries alone, and where it is missing that is seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from liveclone.engine import audit
from liveclone.errors import GuestError, HypervisorError
from liveclone.model.machine import Machine
from tests.machines import Lab
from tests.vm.test_quarantine import patch, ping

COUNT = 3

# The kernel renews its generator by itself too, from what differs between clones: within half of its uptime, later once
# a minute. Done by hand just before the capture, the next is behind all that a clone draws while it is judged.
RENEW = "python3 -c \"import fcntl; fcntl.ioctl(open('/dev/urandom', 'w'), 0x5207)\""  # RNDRESEEDCRNG


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Iterator[Machine]:
    """A machine without the device."""
    machine = lab.boot("bare", vmgenid=False)
    yield machine
    lab.remove(machine)


def test_an_audit_finds_all_distinct(lab: Lab, bare: Machine) -> None:
    taken = lab.snapshot(bare)
    machines = lab.clones(taken, COUNT)
    assert not any("vmgenid" in device for device in taken.devices)
    for machine in (bare, *machines):
        with pytest.raises(HypervisorError):
            lab.qmp(machine, "query-vm-generation-id")
    audited = lab.wait(audit.audit(lab.ctx, taken.id))
    assert audited.equal == ()
    assert {one.name for one in audited.members[1:]} == {machine.name for machine in (bare, *machines)}
    for member in audited.members[1:]:
        assert member.digests.keys() >= {"rng", "draw urandom", "draw kernel-uuid"}
    lab.remove(*machines)
    lab.remove_snapshot(taken)


def test_clones_that_are_not_reseeded_draw_the_same_and_are_refused(lab: Lab, bare: Machine) -> None:
    """All but the first that is judged; the agent believes that it has done all that it should."""
    bare = lab.reload(bare)  # another process since the first test's snapshot
    before = ping(lab, bare)
    lab.shell(bare, patch(("items/rng", "ctx.kernel.add_entropy(ctx.seed, public)", "pass")))
    while ping(lab, bare) == before:
        pass
    lab.shell(bare, RENEW)
    taken = lab.snapshot(bare)
    results = lab.results(taken, COUNT)
    (first,) = [result.machine for result in results if result.machine is not None]
    refused = [result.error for result in results if result.error is not None]
    for error in refused:
        assert isinstance(error, GuestError)
        assert f"rng: its new value is that of {first.name}" in error.seen
    # Where a clone takes long, on a busy host, its kernel has renewed its generator before the last of the draws.
    seen = "; ".join(error.seen for error in refused if error is not None)
    for item in ("machine_id", "ssh_host_keys"):
        assert f"{item}: its new value is that of " in seen
    lab.remove(first)
    lab.remove_snapshot(taken)
