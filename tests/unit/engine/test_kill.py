"""A command is killed (SIGKILL) at every named point there is; whoever comes next finds all in order, or puts it in order.

The points are read from the sources, so a new one is covered when it is written; a clean run of each operation shows that
it really passes its points. After each kill: `repair` in another process, then nothing is left over, the source runs, and
the machine can be captured. That the operation itself works again is seen by the next test, which has the same home.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liveclone.engine import remove, run, seal
from liveclone.model.snapshot import CaptureMethod, SnapshotState
from tests.contract.children import Children, Ended

from .world import World, clone_job, run_job, seal_job, snapshot_job, start_job, without_sealing

SOURCE = Path(__file__).resolve().parents[3] / "src" / "liveclone"
SIGKILL = 9

# Which points an operation passes, by their first word.
OPERATIONS = {
    "run": ("run",),
    "start": ("start",),
    "handover": ("snapshot", "handover"),
    "background": ("snapshot", "background"),
    "stream": ("stream",),
    "clone": ("clone",),
    "seal": ("seal",),
}


def points_of(operation: str) -> list[str]:
    files = [*(SOURCE / "engine").glob("*.py"), *(SOURCE / "drivers" / "fake").glob("*.py")]
    found = {point for file in files for point in re.findall(r'trace\.at\("([a-z.-]+)"\)', file.read_text())}
    return sorted(point for point in found if point.partition(".")[0] in OPERATIONS[operation])


class Case:
    """One operation in a home of its own: what must be there before it, the command, and what must work afterwards."""

    def __init__(self, world: World, children: Children, operation: str) -> None:
        self.world, self.children, self.operation = world, children, operation
        self.is_good = True

    @property
    def takes_snapshot(self) -> bool:
        return self.operation in ("handover", "background", "stream")

    async def prepare(self) -> None:
        """Bring the home into the state in which the operation begins."""
        world = self.world
        if self.operation == "run":
            return
        if not world.ctx.machines.list():
            await world.run("web")
            if self.operation in ("background", "stream", "clone"):
                await world.snapshot("web", "base")
        elif self.operation == "handover":
            await run.stop(world.ctx, "web", force=True)
            await run.start(world.ctx, "web")
        if self.operation == "start":
            await run.stop(world.ctx, "web", force=True)
        if self.operation == "seal":
            await world.snapshot("web", "new", CaptureMethod.STREAM)

    def in_child(self, **env: str) -> Ended:
        jobs: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
            "run": (run_job, ("new",)),
            "start": (start_job, ("web",)),
            "clone": (clone_job, ("base", "new")),
            "seal": (
                seal_job,
                (self.world.ctx.snapshots.find("new").id if self.operation == "seal" else "",),
            ),
        }
        job, args = jobs.get(self.operation, (snapshot_job, ("web", "new", self.operation)))
        return self.children.run(f"{job.__module__}:{job.__name__}", *args, env=self.world.environment | env)

    async def clean(self) -> None:
        """Take away what the operation made."""
        if any(machine.name == "new" for machine in self.world.ctx.machines.list()):
            await self.world.remove("new")
        if any(taken.name == "new" for taken in self.world.ctx.snapshots.list()):
            await remove.remove_snapshot(self.world.ctx, "new")


class Cases:
    """A case for each operation. Tests use them one after the other, so that a machine boots once for many."""

    def __init__(self, children: Children, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._children, self._folders = children, tmp_path_factory
        self._free: dict[str, Case] = {}

    def take(self, operation: str) -> Case:
        if operation in self._free:
            return self._free.pop(operation)
        home = self._folders.mktemp(operation)
        hot = Path(os.environ["LIVECLONE_HOT"]).with_name(home.name)
        return Case(World(home, hot), self._children, operation)

    def give_back(self, case: Case) -> None:
        """Keep the case for the next test; one in which a test failed is thrown away."""
        if case.is_good:
            self._free[case.operation] = case
        else:
            asyncio.run(case.world.aclose())

    def close(self) -> None:
        for case in self._free.values():
            asyncio.run(case.world.remove_all())


@pytest.fixture(scope="module")
def cases(children: Children, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "start", seal.start)
        without_sealing()
        cases = Cases(children, tmp_path_factory)
        yield cases
        cases.close()


@pytest.fixture
def case(cases: Cases, operation: str) -> Iterator[Case]:
    """Return the case of `operation`. A test that passes says `case.is_good` at its end."""
    case = cases.take(operation)
    case.is_good = False
    yield case
    cases.give_back(case)


def test_every_point_belongs_to_an_operation() -> None:
    text = "".join(file.read_text() for file in SOURCE.rglob("*.py") if file.name != "trace.py")
    words = {point.partition(".")[0] for point in re.findall(r'trace\.at\("([a-z.-]+)"\)', text)}
    assert words == {word for words in OPERATIONS.values() for word in words}


@pytest.mark.parametrize(
    ("operation", "point"),
    [pytest.param(o, p, id=f"{o}-{p}") for o in OPERATIONS for p in points_of(o)],
)
async def test_a_command_that_was_killed_is_settled(case: Case, operation: str, point: str) -> None:
    world = case.world
    await case.prepare()
    if case.takes_snapshot:
        await world.write("web", "/srv/token", point)
    assert case.in_child(LIVECLONE_FAULT=f"{point}=kill").signal == SIGKILL
    await world.repair()
    if operation == "seal":
        sealed = await asyncio.to_thread(seal.seal, world.ctx, world.ctx.snapshots.find("new").id)
        assert sealed.state is SnapshotState.SEALED
    assert await world.find_faults() == []
    if case.takes_snapshot:
        await world.check_runs("web")
        assert await world.read("web", "/srv/token") == point
        await case.clean()
        await world.snapshot("web", "new", CaptureMethod.STREAM)
        assert await world.find_faults() == []
    await case.clean()
    case.is_good = True


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_clean_run_passes_every_point(case: Case, operation: str, tmp_path: Path) -> None:
    await case.prepare()
    trace = tmp_path / "trace"
    ended = case.in_child(LIVECLONE_TRACE=str(trace))
    assert (ended.signal, ended.error) == (0, {})
    assert set(points_of(operation)) <= set(trace.read_text().split())
    assert await case.world.find_faults() == []
    await case.clean()
    case.is_good = True


@pytest.mark.parametrize("operation", ["handover"])
async def test_the_next_command_settles_it_without_being_asked(case: Case) -> None:
    await case.prepare()
    assert case.in_child(LIVECLONE_FAULT="handover.saved=kill").signal == SIGKILL
    taken = await case.world.snapshot("web", "new")
    assert taken.capture.method is CaptureMethod.HANDOVER
    assert await case.world.find_faults() == []
    await case.clean()
    case.is_good = True
