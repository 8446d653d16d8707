"""Machines that wait for clones, in real QEMUs: they stand still, are nobody yet, and become clones as good as others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from liveclone.engine import pool, refill
from liveclone.host import process
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import PATIENCE_S, Lab, Operation
from tests.vm.conftest import Story

SIZE = 2


@pytest.fixture
def filled(
    lab: Lab, snapshotted: Snapshot, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[list[Machine]]:
    """Return machines that wait for clones; those that are taken are made again only where a test asks for it."""
    if "refilling" not in request.fixturenames:
        monkeypatch.setattr(refill, "start", lambda ctx, snapshot: None)
    assert lab.wait(refill.set_size(lab.ctx, snapshotted.id, SIZE)).ready == SIZE
    yield waiting(lab, snapshotted)
    lab.wait(refill.set_size(lab.ctx, snapshotted.id, 0))


@pytest.fixture
def refilling() -> None:
    """Ask for it where pools are to be filled again in the background."""


def waiting(lab: Lab, taken: Snapshot) -> list[Machine]:
    return [one.machine for one in pool.find(lab.ctx, taken.id)]


def ask(lab: Lab, machine: Machine, command: str) -> dict[str, object]:
    async def work() -> dict[str, object]:
        handle = await lab.ctx.driver.open(machine, lab.ctx.layout.machine(machine.id))
        try:
            found: dict[str, object] = await handle.session.call(command)  # type: ignore[attr-defined]
            return found
        finally:
            await handle.close()

    return lab.wait(work())


def test_they_stand_still_and_are_nobody(lab: Lab, story: Story, filled: list[Machine]) -> None:
    for machine in filled:
        assert ask(lab, machine, "query-status")["status"] == "paused"
    generations = {ask(lab, machine, "query-vm-generation-id")["guid"] for machine in filled}
    assert len(generations | {story.vmgenid_before, story.vmgenid_after}) == SIZE + 2
    assert not {machine.id for machine in lab.ctx.machines.list()} & {machine.id for machine in filled}
    assert lab.repair() == []
    assert waiting(lab, story.snapshot) == filled


def test_clones_that_were_waiting_are_as_good_as_others(
    lab: Lab, story: Story, filled: list[Machine]
) -> None:
    results = lab.results(story.snapshot, SIZE + 1)
    machines = [result.machine for result in results if result.machine is not None]
    assert [result.error for result in results] == [None] * (SIZE + 1)
    assert sorted(result.pooled for result in results) == [False, True, True]
    assert {one.id for one in filled} <= {one.id for one in machines}
    apps = [lab.http(machine, "/identity") for machine in machines]
    assert {(app["token"], app["index"]) for app in apps} == {
        (story.app_before["token"], story.app_before["index"])
    }
    for what in (
        "cat /proc/sys/kernel/random/boot_id",
        "cat /etc/machine-id",
        "hostname",
        "head -c16 /dev/urandom | od -An -tx1",
    ):
        assert len({lab.shell(machine, what) for machine in machines}) == len(machines), what
    assert {lab.shell(machine, "cat /var/lib/written") for machine in machines} == {"of-the-source"}
    lab.remove(*machines)


def test_a_pooled_clone_starts_no_process(lab: Lab, snapshotted: Snapshot, filled: list[Machine]) -> None:
    before = set(lab.qemus())
    (result,) = lab.results(snapshotted)
    assert result.machine is not None and result.machine.process is not None
    assert set(lab.qemus()) == before
    assert result.machine.process in {machine.process for machine in filled}
    lab.remove(result.machine)


def test_one_that_died_is_thrown_away(lab: Lab, snapshotted: Snapshot, filled: list[Machine]) -> None:
    lost, good = filled
    assert lost.process is not None
    lab.wait(process.end(lost.process))
    (result,) = lab.results(snapshotted)
    assert result.machine is not None and result.machine.id == good.id
    assert not lab.ctx.layout.machine(lost.id).exists()
    lab.remove(result.machine)


@pytest.mark.usefixtures("refilling")
def test_what_was_taken_is_made_again_and_not_at_a_lower_priority(
    lab: Lab, snapshotted: Snapshot, filled: list[Machine]
) -> None:
    (result,) = lab.results(snapshotted)
    assert result.pooled and result.machine is not None
    for filler in process.find_logging_into(lab.ctx.layout.pool(snapshotted.id)):
        assert process.wait_gone(filler, PATIENCE_S)
    assert pool.summarize(lab.ctx, snapshotted).ready == SIZE
    nice = set()
    for machine in waiting(lab, snapshotted):
        assert machine.process is not None
        with open(f"/proc/{machine.process.pid}/stat") as file:
            nice.add(file.read().rpartition(")")[2].split()[16])
    with open(f"/proc/{result.machine.process.pid if result.machine.process else 0}/stat") as file:
        assert nice == {file.read().rpartition(")")[2].split()[16]}
    lab.remove(result.machine)


def test_what_is_drained_leaves_nothing(lab: Lab, snapshotted: Snapshot, filled: list[Machine]) -> None:
    qemus = set(lab.qemus())
    assert lab.wait(refill.drain(lab.ctx, snapshotted.id)) == SIZE
    gone = {machine.process.pid for machine in filled if machine.process is not None}
    assert set(lab.qemus()) == qemus - gone
    assert len(gone) == SIZE
    assert lab.find_faults() == []
    (result,) = lab.results(snapshotted)
    assert result.machine is not None and not result.pooled
    lab.remove(result.machine)


@pytest.mark.parametrize("point", ["pool.known", "clone.started", "pool.loaded", "pool.recorded"])
def test_of_one_whose_maker_was_killed_repair_leaves_nothing(
    lab: Lab, snapshotted: Snapshot, point: str
) -> None:
    with Operation(lab, "pool", kill_at=point, snapshot=snapshotted.id, size=1) as operation:
        assert operation.result() == {"killed": True}
    assert lab.find_faults()
    lab.repair()
    assert (waiting(lab, snapshotted), lab.find_faults()) == ([], [])
    assert lab.wait(refill.set_size(lab.ctx, snapshotted.id, 0)).waiting == {}


@pytest.mark.parametrize("point", ["pool.taken", "clone.restored", "clone.resumed", "clone.verified"])
def test_of_one_whose_taker_was_killed_repair_leaves_nothing(
    lab: Lab, snapshotted: Snapshot, filled: list[Machine], point: str
) -> None:
    with Operation(lab, "clone", kill_at=point, snapshot=snapshotted.id) as operation:
        assert operation.result() == {"killed": True}
    lab.repair()
    taken, left = filled
    assert waiting(lab, snapshotted) == [left]
    assert not process.is_alive(taken.process)
    assert not lab.ctx.layout.machine(taken.id).exists()
