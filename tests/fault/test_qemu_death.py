"""A QEMU is killed at every named point there is (deaths.py): what can go on goes on, and the error says the rest.

Clones serve as sources too, for they come in a second: see `Herd`. Starting a machine again takes eight; tests/unit/engine
does it after each of these deaths, with the fake hypervisor, and here those are started whose disk had gone on since.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from liveclone import trace
from liveclone.engine import parts, pool, refill, run, seal
from liveclone.errors import LivecloneError
from liveclone.host import files, process
from liveclone.model.machine import Machine, Memory, MemorySource, ProcessRef
from liveclone.model.snapshot import CaptureMethod, Snapshot, SnapshotState
from tests.fault import deaths
from tests.fault.conftest import Sources
from tests.fault.deaths import Death, Outcome, Whose
from tests.machines import LIGHT_RAM, Lab, Operation, check_clear, kill

# What an operation does when its QEMU has died takes tenths of a second; the shortest deadline is ten.
SOON_S = 8.0
AT_ONCE = 4
# Points at which the guest runs, and what it writes is not in the snapshot any more.
WRITES_ON = ("snapshot.committed", "background.streamed")


def of(table: list[Death]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("death", [pytest.param(death, id=death.id) for death in table])


class Herd:
    """Machines for the taking: clones of one source, a few at a time.

    `cold`: their RAM is a file of their own that is mapped shared, as that of a machine from cold. So they can hand over.
    """

    def __init__(self, lab: Lab, sources: Sources) -> None:
        self._lab, self._sources = lab, sources
        self._free: dict[bool, list[Machine]] = {False: [], True: []}
        self.token = ""

    def take(self, *, cold: bool = False) -> Machine:
        if not self._free[cold]:
            taken = self._lab.snapshot(self._sources.any())
            self.token = self._sources.token
            if cold:
                self._free[cold] = [self._clone_cold(taken) for _ in range(AT_ONCE)]
            else:
                self._free[cold] = self._lab.clones(taken, AT_ONCE)
            self._lab.snapshots_sealed()
            self._lab.remove_snapshot(taken)
        return self._free[cold].pop()

    def give_back(self, machine: Machine) -> None:
        after = self._lab.reload(machine)
        if process.is_alive(after.process) and after == machine:
            self._free[_is_cold(machine)].append(machine)
        else:
            self._lab.remove(machine)

    def _clone_cold(self, taken: Snapshot) -> Machine:
        assert taken.hot is not None
        copy = self._lab.ctx.layout.hot / "copy"
        files.copy_sparse(Path(taken.hot.path), copy, mode=0o600)
        memory = Memory(path=str(copy), source=MemorySource.SHARED_HOT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "check", lambda ctx, snapshot: memory)
            machine = self._lab.clone(taken)
        ram = self._lab.ctx.layout.ram(machine.id)
        copy.rename(ram)
        changed: Machine = machine.replace(memory=memory.replace(path=str(ram)))
        self._lab.ctx.machines.save(changed)
        return changed

    def close(self) -> None:
        self._lab.remove(*self._free[False], *self._free[True])


def _is_cold(machine: Machine) -> bool:
    return machine.memory is not None and machine.memory.source is MemorySource.SHARED_HOT


@pytest.fixture(scope="module")
def herd(lab: Lab, sources: Sources) -> Iterator[Herd]:
    herd = Herd(lab, sources)
    yield herd
    herd.close()


@pytest.fixture
def spare(herd: Herd) -> Iterator[Machine]:
    """A machine that runs, for this test alone."""
    spare = herd.take()
    yield spare
    herd.give_back(spare)


@pytest.fixture
def cold(herd: Herd) -> Iterator[Machine]:
    """One that has not handed over yet."""
    cold = herd.take(cold=True)
    yield cold
    herd.give_back(cold)


@contextmanager
def killing(lab: Lab, point: str, find: Callable[[], ProcessRef | None]) -> Iterator[list[LivecloneError]]:
    """Kill what `find` returns when the operation in the block comes to `point`; the error it ends with is in the list."""
    killed_at: list[float] = []
    errors: list[LivecloneError] = []

    def at(here: str) -> None:
        if here == point and not killed_at:
            kill(find())
            killed_at.append(time.monotonic())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "at", at)
        try:
            yield errors
        except LivecloneError as error:
            errors.append(error)
    assert killed_at, f"{point} was not passed"
    if errors:
        assert time.monotonic() - killed_at[0] < SOON_S, f"it waited for a deadline: {errors[0].fields()}"
    assert lab.find_double_writers() == []
    # The command itself has left all in order.
    assert lab.repair() == []


def victim(lab: Lab, machine: Machine, whose: Whose) -> ProcessRef | None:
    if whose is Whose.SUCCESSOR:
        entry = lab.ctx.journal(machine.id).read()
        assert entry is not None
        return ProcessRef(**entry.facts["successor"])
    return lab.reload(machine).process


def find_waiting(lab: Lab) -> ProcessRef:
    (pid,) = [pid for pid, line in lab.qemus().items() if "-pool-" in line]
    return process.ref(pid)


def take_and_kill(lab: Lab, machine: Machine, death: Death) -> LivecloneError | None:
    """Take the snapshot `killed`, during which a QEMU dies; return its error, if it had any."""

    def find() -> ProcessRef | None:
        if death.point in WRITES_ON:
            lab.console(machine, "echo late > /var/lib/mark; sync")
        return victim(lab, machine, death.whose)

    with killing(lab, death.point, find) as errors:
        lab.snapshot(machine, "killed", CaptureMethod(death.method))
    return errors[0] if errors else None


def check_stopped(lab: Lab, machine: Machine, error: LivecloneError | None) -> None:
    """Fail unless the machine is known to have stopped, and the error says so; there is none if it died too late."""
    stopped = lab.reload(machine)
    assert not process.is_alive(stopped.process)
    if error is not None:
        check_clear(error, source_state="stopped")
        assert error.next_step.startswith(f"liveclone start {machine.name}")
        assert stopped.process is None
    # 3: clusters that were taken and not used yet; nothing points to them.
    checked = subprocess.run(["qemu-img", "check", "-q", stopped.disk], check=False)
    assert checked.returncode in (0, 3)


def check_stands(lab: Lab, error: LivecloneError | None, token: str) -> None:
    """Fail unless the snapshot is there, is sealed without being asked again, and gives a clone with the memory it had."""
    (taken,) = lab.ctx.snapshots.list()
    if error is not None:
        assert error.next_step.endswith(f"; the snapshot {taken.name} can be used")
    lab.wait_sealed(taken)
    clone = lab.clone(taken)
    assert lab.http(clone)["token"] == token
    lab.remove(clone)


def check_source(lab: Lab, machine: Machine, death: Death, error: LivecloneError | None, token: str) -> None:
    """Fail unless the machine has stopped, or runs on, and the snapshot stands, as the table says."""
    outcome = death.outcome
    if outcome is Outcome.STOPPED_OR_STANDS:
        outcome = Outcome.STANDS if lab.ctx.snapshots.list() else Outcome.STOPPED
    assert (error is None) == (outcome in (Outcome.DONE, Outcome.MOVES_ON)), error
    if outcome in (Outcome.STOPPED, Outcome.STANDS, Outcome.DONE):
        check_stopped(lab, machine, error)
    else:
        after = lab.reload(machine)
        assert lab.http(after)["token"] == token
        assert (after.process == machine.process) == (outcome is Outcome.RUNS_ON)
    if outcome is Outcome.RUNS_ON:
        assert error is not None
        check_clear(error, source_state="running")
        assert error.next_step == f"liveclone snapshot {machine.name}"
    if outcome in (Outcome.STOPPED, Outcome.RUNS_ON):
        assert lab.ctx.snapshots.list() == []
    elif outcome is not Outcome.MOVES_ON:
        check_stands(lab, error, token)
    if death.point in WRITES_ON:
        assert lab.shell(lab.start(lab.reload(machine)), "cat /var/lib/mark") == "late"


@of(deaths.HANDOVER)
def test_while_handing_over(lab: Lab, herd: Herd, cold: Machine, death: Death) -> None:
    error = take_and_kill(lab, cold, death)
    check_source(lab, cold, death, error, herd.token)


@of(deaths.IN_PLACE)
def test_while_captured_in_place(lab: Lab, herd: Herd, spare: Machine, death: Death) -> None:
    error = take_and_kill(lab, spare, death)
    check_source(lab, spare, death, error, herd.token)


@of(deaths.SEALING)
def test_while_sealing(lab: Lab, spare: Machine, death: Death, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "start", lambda ctx, snapshot: None)
    taken = lab.snapshot(spare, "killed", CaptureMethod(death.method))
    with killing(lab, death.point, lambda: spare.process) as errors:
        assert seal.seal(lab.ctx, taken.id).state is SnapshotState.SEALED
    assert errors == []
    check_stopped(lab, spare, None)


@of([death for death in deaths.CLONING if death.whose is Whose.CLONE])
def test_while_becoming_a_clone(lab: Lab, sources: Sources, death: Death) -> None:
    taken = lab.snapshot(sources.any())

    def find() -> ProcessRef | None:
        (pid,) = [pid for pid, line in lab.qemus().items() if "guest=doomed," in line]
        return process.ref(pid)

    with killing(lab, death.point, find):
        (result,) = lab.results(taken, names=["doomed"])
    left = [machine for machine in lab.ctx.machines.list() if machine.name == "doomed"]
    if death.outcome is Outcome.GONE:
        assert result.error is not None
        check_clear(result.error, source_state="not touched")
        assert result.error.next_step == f"liveclone clone {taken.name}"
        assert left == []
    else:
        assert result.error is None
        assert not process.is_alive(left[0].process)
        lab.remove(*left)
    sources.check()


@of([death for death in deaths.POOLS if death.outcome is Outcome.DONE])
def test_while_it_begins_to_wait_in_a_pool(lab: Lab, sources: Sources, death: Death) -> None:
    taken = lab.snapshot(sources.any())
    with killing(lab, death.point, lambda: find_waiting(lab)) as errors:
        assert lab.wait(refill.set_size(lab.ctx, taken.id, 1)).ready == 0
    assert errors == []
    assert lab.wait(refill.set_size(lab.ctx, taken.id, 1)).ready == 1
    assert lab.wait(refill.set_size(lab.ctx, taken.id, 0)).waiting == {}
    sources.check()


@of([death for death in deaths.POOLS if death.outcome is Outcome.GONE])
def test_while_it_is_taken_from_a_pool(
    lab: Lab, sources: Sources, death: Death, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "start", lambda ctx, snapshot: None)
    taken = lab.snapshot(sources.any())
    lab.wait(refill.set_size(lab.ctx, taken.id, 1))
    machines = {machine.id for machine in lab.ctx.machines.list()}
    with killing(lab, death.point, lambda: find_waiting(lab)):
        (result,) = lab.results(taken)
    assert result.error is not None
    check_clear(result.error, source_state="not touched")
    assert result.error.next_step == f"liveclone clone {taken.name}"
    assert {machine.id for machine in lab.ctx.machines.list()} == machines
    assert pool.find(lab.ctx, taken.id) == []
    lab.wait(refill.set_size(lab.ctx, taken.id, 0))
    sources.check()


@of([death for death in deaths.CLONING if death.whose is Whose.SOURCE])
def test_a_clone_whose_source_dies_becomes_ready(lab: Lab, herd: Herd, spare: Machine, death: Death) -> None:
    taken = lab.snapshot(spare)
    with killing(lab, death.point, lambda: spare.process) as errors:
        clone = lab.clone(taken)
    assert errors == []
    assert lab.http(clone)["token"] == herd.token
    lab.remove(clone)


@of(deaths.MAKING)
def test_while_being_made(lab: Lab, death: Death) -> None:
    before = [machine.id for machine in lab.ctx.machines.list()]
    request = run.Request(image="light", name="doomed", ram_bytes=LIGHT_RAM)
    with killing(lab, death.point, lambda: lab.ctx.machines.find("doomed").process) as errors:
        lab.wait(run.run(lab.ctx, request))
    check_clear(errors[0], source_state="removed again")
    assert errors[0].next_step == "liveclone run light"
    assert [machine.id for machine in lab.ctx.machines.list()] == before


def test_while_being_started(lab: Lab, spare: Machine) -> None:
    """The machine died with the process that took its snapshot, when the guest had written behind the freeze."""
    arguments: dict[str, Any] = {"machine": spare.id, "method": "background"}
    with Operation(lab, "snapshot", stops=["background.resumed"], **arguments) as operation:
        operation.reach("background.resumed")
        lab.console(spare, "echo late > /var/lib/mark; sync")
        operation.kill()
    kill(spare.process)
    assert lab.repair() == [spare.name]
    assert lab.ctx.snapshots.list() == []
    for death in deaths.STARTING:
        with killing(lab, death.point, lambda: lab.reload(spare).process) as errors:
            lab.wait(run.start(lab.ctx, spare.id))
        check_clear(errors[0], source_state="stopped again")
        assert errors[0].next_step == f"liveclone start {spare.name}"
        assert lab.reload(spare).process is None
    assert lab.shell(lab.start(lab.reload(spare)), "cat /var/lib/mark") == "late"
