"""Operations in homes of their own, for tests that end them at each named point there is.

The points are read from the sources, so a new one is covered when it is written.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liveclone.engine import export, importing, pool, refill, remove, run, seal
from liveclone.model.snapshot import CaptureMethod
from tests.contract.children import Children, Ended

from .world import (
    SCRUB,
    World,
    clone_job,
    export_job,
    fill_job,
    import_job,
    run_job,
    scrub_job,
    seal_job,
    snapshot_job,
    start_job,
    without_refilling,
    without_sealing,
)

SOURCE = Path(__file__).resolve().parents[3] / "src" / "liveclone"

# Which points an operation passes, by their first word.
OPERATIONS = {
    "run": ("run",),
    "start": ("start",),
    "handover": ("snapshot", "handover"),
    "background": ("snapshot", "background"),
    "stream": ("stream",),
    "clone": ("clone",),
    "pooled": ("clone",),
    "fill": ("pool",),
    "seal": ("seal",),
    "scrub": ("scrub", "snapshot"),
    "export": ("export",),
    "import": ("import",),
}
# What a clone does not do that takes a machine which waits, and what it does that no other operation does.
STARTS = {"clone.made", "clone.started", "clone.loaded"}
TAKES = {"pool.taken"}


def points_of(operation: str) -> list[str]:
    files = [*(SOURCE / "engine").glob("*.py"), *(SOURCE / "drivers" / "fake").glob("*.py")]
    words = OPERATIONS[operation]
    found = {point for file in files for point in re.findall(r'trace\.at\("([a-z.-]+)"\)', file.read_text())}
    points = {point for point in found if point.partition(".")[0] in words}
    return sorted((points - STARTS) | TAKES if operation == "pooled" else points - TAKES)


class Case:
    """One operation in a home of its own: what must be there before it, the command, and what must work afterwards."""

    def __init__(self, world: World, children: Children, operation: str) -> None:
        self.world, self.children, self.operation = world, children, operation
        self.is_good = True

    @property
    def takes_snapshot(self) -> bool:
        return self.operation in ("handover", "background", "stream", "scrub")

    @property
    def file(self) -> Path:
        """What is exported, or imported."""
        return self.world.home / "files" / "base.lcs"

    async def prepare(self) -> None:
        """Bring the home into the state in which the operation begins."""
        world = self.world
        if self.operation == "run":
            return
        if not world.ctx.machines.list():
            await world.run("web")
            if self.operation in ("background", "stream", "clone", "pooled", "fill", "export", "import"):
                await world.snapshot("web", "base")
            if self.operation in ("export", "import"):
                self.file.parent.mkdir()
                await asyncio.to_thread(seal.seal, world.ctx, world.ctx.snapshots.find("base").id)
            if self.operation == "import":
                await export.export(world.ctx, "base", self.file, i_know=True)
        elif self.operation == "handover":
            await run.stop(world.ctx, "web", force=True)
            await run.start(world.ctx, "web")
        if self.operation == "start":
            await run.stop(world.ctx, "web", force=True)
        if self.operation == "scrub":
            await world.write("web", "/srv/token", "to be there")
        if self.operation == "pooled":
            await refill.set_size(world.ctx, "base", 1)
        if self.operation == "seal":
            await world.snapshot("web", "new", CaptureMethod.STREAM)

    def in_child(self, **env: str) -> Ended:
        jobs: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
            "run": (run_job, ("new",)),
            "start": (start_job, ("web",)),
            "clone": (clone_job, ("base", "new")),
            "pooled": (clone_job, ("base", "new")),
            "fill": (fill_job, ("base", "2")),
            "scrub": (scrub_job, ("web", "new")),
            "export": (export_job, ("base", str(self.file))),
            "import": (import_job, (str(self.file), "new")),
            "seal": (
                seal_job,
                (self.world.ctx.snapshots.find("new").id if self.operation == "seal" else "",),
            ),
        }
        job, args = jobs.get(self.operation, (snapshot_job, ("web", "new", self.operation)))
        return self.children.run(f"{job.__module__}:{job.__name__}", *args, env=self.world.environment | env)

    async def in_process(self) -> object:
        """Carry the operation out in this process."""
        world = self.world
        if self.operation == "run":
            return await world.run("new")
        if self.operation == "start":
            return await run.start(world.ctx, "web")
        if self.operation == "fill":
            return await refill.set_size(world.ctx, "base", 2)
        if self.operation in ("clone", "pooled"):
            return await world.clone("base", names=("new",))
        if self.operation == "scrub":
            return await world.snapshot("web", "new", scrub=SCRUB)
        if self.operation == "export":
            return await export.export(world.ctx, "base", self.file, i_know=True)
        if self.operation == "import":
            return await importing.import_(world.ctx, self.file, "new")
        return await world.snapshot("web", "new", CaptureMethod(self.operation))

    async def clean(self) -> None:
        """Take away what the operation made."""
        if any(machine.name == "new" for machine in self.world.ctx.machines.list()):
            await self.world.remove("new")
        if any(taken.name == "new" for taken in self.world.ctx.snapshots.list()):
            await remove.remove_snapshot(self.world.ctx, "new")
        if self.operation == "fill":
            await pool.drain_all(self.world.ctx)
        if self.operation == "export":
            self.file.unlink(missing_ok=True)


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
        patch.setattr(refill, "start", refill.start)
        without_sealing()
        without_refilling()
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
