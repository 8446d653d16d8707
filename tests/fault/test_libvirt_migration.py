"""An adopted domain's owner migrates it live: before a snapshot, beside one, in the middle of one, and before its clones.

Two libvirtds on this host play two hosts that share the disk: each has a host name, a UUID and sockets of its own. What
they cannot play is a host without the other's processes: liveclone sees both QEMUs of the domain here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libvirt
import pytest

from liveclone.drivers.libvirt import capture
from liveclone.engine import run
from liveclone.errors import Conflict, LivecloneError, NotFound
from liveclone.model.snapshot import Snapshot
from tests.fault.domains import NAME, RUNNING, Shop, doing_at
from tests.libvirt_domains import wait_for_agent
from tests.libvirtd import Libvirtd
from tests.machines import PATIENCE_S, Operation, check_clear

OTHER = "elsewhere"
SLOW_MIB_S = 1  # two minutes for this domain, or until it is cancelled
AWAY = {False: "migrated", True: "no-domain"}  # whether libvirt here has forgotten the domain


class Elsewhere:
    """The other host."""

    def __init__(self, shop: Shop, daemon: Libvirtd, inside: ThreadPoolExecutor) -> None:
        self._shop, self._daemon, self._inside = shop, daemon, inside
        self._here = ThreadPoolExecutor()
        self._socket = daemon.folder / "migration"
        self.connection: Any = libvirt.open(daemon.uri)

    @property
    def domain(self) -> Any:
        return self.connection.lookupByName(NAME)

    def take(self, *, forget: bool = False, slow: bool = False) -> None:
        """Let the domain come here."""
        self._migrate(self._shop.connection, self.connection, forget=forget, slow=slow)

    def begin_to_take(self, *, wait: bool = True) -> Future[None]:
        """Let it come so slowly that it is on its way for long; returns when it is, or at once."""
        coming = self._here.submit(self.take, slow=True)
        deadline = time.monotonic() + PATIENCE_S
        while wait and self._job() != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
            assert not coming.done(), coming.exception()
            assert time.monotonic() < deadline
            time.sleep(0.01)  # libvirt has no event for a job's beginning
        return coming

    def give_back(self) -> None:
        self._migrate(self.connection, self._shop.connection, forget=True)

    def check_runs(self, disk: Path) -> None:
        """Fail unless the domain runs here, on this disk, with a guest that answers."""
        assert self.domain.state()[0] == RUNNING
        assert f"<source file='{disk}'" in self.domain.XMLDesc()
        self._inside.submit(wait_for_agent, self.domain).result()

    def clear(self) -> None:
        """End the domain, if it is here."""
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.destroy()
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.undefine()

    def close(self) -> None:
        self.clear()
        self._here.shutdown()
        self.connection.close()

    def _migrate(self, source: Any, target: Any, *, forget: bool, slow: bool = False) -> None:
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE
        flags |= libvirt.VIR_MIGRATE_UNDEFINE_SOURCE if forget else 0
        wanted: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{self._socket}"}
        if slow:
            wanted[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = SLOW_MIB_S
        source.lookupByName(NAME).migrate3(target, wanted, flags)

    def _job(self) -> int:
        return int(self._shop.domain.jobStats().get(libvirt.VIR_DOMAIN_JOB_OPERATION, -1))


@pytest.fixture(scope="module")
def _elsewhere(_shop: Shop, cache_folder: Path) -> Iterator[Elsewhere]:
    folder = Path(os.environ["LIVECLONE_HOME"]).with_name(OTHER)
    daemon = Libvirtd(folder, cache=cache_folder / "libvirt", host=OTHER)
    with ThreadPoolExecutor(1) as inside:  # our own thread goes on to see the paths of the first
        inside.submit(daemon.start).result()
        try:
            there = Elsewhere(_shop, daemon, inside)
            yield there
            there.close()
        finally:
            inside.submit(daemon.stop).result()


@pytest.fixture
def elsewhere(shop: Shop, _elsewhere: Elsewhere) -> Iterator[Elsewhere]:
    """The other host, without the domain."""
    yield _elsewhere
    _elsewhere.clear()


def check_cancelled(migration: Future[None]) -> None:
    """Fail unless whoever asked for the migration was told that it was cancelled."""
    error = migration.exception(PATIENCE_S)
    assert isinstance(error, libvirt.libvirtError)
    assert error.get_error_code() in (libvirt.VIR_ERR_OPERATION_ABORTED, libvirt.VIR_ERR_OPERATION_FAILED), (
        error
    )


def check_away(error: LivecloneError, *, forgotten: bool) -> None:
    check_clear(error, source_state="not here")
    assert f"liveclone adopt {NAME} there" in error.next_step
    assert f"liveclone remove {NAME} forgets it here" in error.next_step
    assert f"liveclone start {NAME}" not in error.next_step
    if isinstance(error, NotFound):
        assert error.code == AWAY[forgotten]


@pytest.mark.parametrize("forgotten", AWAY)
def test_before_a_snapshot(shop: Shop, elsewhere: Elsewhere, forgotten: bool) -> None:
    elsewhere.take(forget=forgotten)
    files = sorted(path.name for path in shop.disks.iterdir())
    error = shop.fails_to_snapshot()
    assert isinstance(error, NotFound)
    check_away(error, forgotten=forgotten)
    with pytest.raises(NotFound) as caught:  # two machines would write its disk
        shop.lab.wait(run.start(shop.lab.ctx, shop.machine.id))
    check_away(caught.value, forgotten=forgotten)
    assert [one for one in shop.connection.listAllDomains() if one.isActive()] == []
    assert shop.lab.repair() == []
    elsewhere.check_runs(shop.disk)
    elsewhere.give_back()
    shop.before["pid"] = shop.look()["pid"]
    shop.check()
    assert sorted(path.name for path in shop.disks.iterdir()) == files
    shop.clone(shop.lab.snapshot(shop.machine))
    shop.check()


def test_between_a_snapshot_and_a_clone(shop: Shop, taken: Snapshot, elsewhere: Elsewhere) -> None:
    """The snapshot needs nothing of the domain."""
    elsewhere.take(forget=True)
    shop.clone(taken)
    elsewhere.check_runs(shop.disk)


def test_beside_a_migration(shop: Shop, elsewhere: Elsewhere) -> None:
    migration = elsewhere.begin_to_take()
    error = shop.fails_to_snapshot()
    assert isinstance(error, Conflict)
    check_clear(error, source_state="running, not touched")
    assert (error.code, error.seen) == ("other-job", "a migration")
    assert not migration.done()
    shop.domain.abortJob()
    check_cancelled(migration)
    shop.check()
    shop.lab.snapshot(shop.machine)
    shop.check()


@pytest.mark.parametrize("point", ["snapshot.unplugged", "stream.paused", "stream.resumed"])
def test_in_the_middle_of_a_snapshot(shop: Shop, elsewhere: Elsewhere, point: str) -> None:
    """It is cancelled: the domain would go without its cards, or on a layer of ours. The snapshot stands."""
    begun: list[Future[None]] = []

    def begin() -> None:
        # In libvirt's own job it has to wait until that ends.
        begun.append(elsewhere.begin_to_take(wait=point != "stream.paused"))

    with doing_at(point, begin) as errors:
        taken = shop.lab.snapshot(shop.machine)
    assert errors == []
    check_cancelled(begun[0])
    shop.check()
    shop.clone(taken)


@pytest.mark.parametrize("forgotten", AWAY)
def test_quicker_than_we_can_cancel_it(
    shop: Shop, elsewhere: Elsewhere, forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing of it is touched any more, least of all the layer that it writes there."""
    monkeypatch.setattr(capture, "_stay_here", lambda connection: contextlib.nullcontext())
    with doing_at("stream.resumed", lambda: elsewhere.take(forget=forgotten)) as errors:
        shop.lab.snapshot(shop.machine)
    (error,) = errors
    check_away(error, forgotten=forgotten)
    (layer,) = (path for path in shop.disks.iterdir() if path != shop.disk)
    assert str(layer) in error.source_state
    assert shop.lab.repair() == []
    assert {one.id for one in shop.lab.ctx.snapshots.list()} == shop.kept
    elsewhere.check_runs(layer)


def test_after_our_death_in_a_snapshot(shop: Shop, elsewhere: Elsewhere) -> None:
    """What is left of the snapshot is settled when the migration has ended, not under it."""
    with Operation(shop.lab, "snapshot", kill_at="stream.resumed", machine=shop.machine.id) as operation:
        assert operation.result() == {"killed": True}
    migration = elsewhere.begin_to_take()
    with pytest.raises(Conflict) as caught:
        shop.lab.repair()
    check_clear(caught.value, source_state="not touched")
    assert caught.value.code == "other-job"
    assert not migration.done()
    shop.domain.abortJob()
    check_cancelled(migration)
    assert shop.lab.repair() == [NAME]
    shop.check()
