"""What every operation is given: the settings, the store, the driver, and whom to tell how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from ..drivers.base import Driver
from ..errors import Unsupported
from ..host import links, locks
from ..identity.evidence import EvidenceBook
from ..identity.signature import HostKey
from ..images.library import ImageLibrary
from ..model.machine import Machine
from ..model.snapshot import Snapshot
from ..store.journal import Journal
from ..store.layout import Layout
from ..store.leases import LeaseBook
from ..store.objects import Objects
from .settings import Settings
from .settings import read as read_settings

Progress = Callable[[str, float | None], None]

# Another command on the same machine usually ends within seconds; a snapshot of a busy one may take longer.
BUSY_DEADLINE_S = 120.0


def silent(step: str, fraction: float | None = None) -> None:
    """Tell nobody."""


@dataclass
class Context:
    """See the module. Make it with `open_context`."""

    settings: Settings
    layout: Layout
    driver: Driver
    machines: Objects[Machine]
    snapshots: Objects[Snapshot]
    images: ImageLibrary
    leases: LeaseBook
    host_key: HostKey
    progress: Progress = field(default=silent)

    def driver_for(self, name: str) -> Driver:
        """Return the driver of a machine or snapshot; one home may hold those of several."""
        if name == self.driver.name:
            return self.driver
        return _open_driver(replace(self.settings, driver=name), self.layout)

    def evidence(self, snapshot_id: str) -> EvidenceBook:
        lock = self.layout.lock(f"evidence-{snapshot_id}")
        return EvidenceBook(self.layout.snapshot(snapshot_id), lock, self.host_key)

    def journal(self, machine_id: str) -> Journal:
        return Journal(self.layout.machine(machine_id))

    def network_spec(self) -> links.NetworkSpec:
        return links.NetworkSpec(
            namespace=self.layout.namespace,
            lock=self.layout.lock("network"),
            gateway=self.settings.subnet,
        )

    @contextlib.asynccontextmanager
    async def hold_snapshot(self, snapshot_id: str, what: str, *, shared: bool) -> AsyncIterator[Snapshot]:
        """Hold a snapshot: together with others to start clones from it, alone to remove it."""
        path = self.layout.lock(f"snapshot-{snapshot_id}")
        async with locks.hold_async(path, what, BUSY_DEADLINE_S, shared=shared):
            yield self.snapshots.load(snapshot_id)


def open_context(settings: Settings | None = None, progress: Progress = silent) -> Context:
    """Return a context for these settings (the environment's by default); makes missing folders."""
    settings = settings or read_settings()
    layout = Layout(settings.home, settings.hot)
    layout.prepare()
    return Context(
        settings=settings,
        layout=layout,
        driver=_open_driver(settings, layout),
        machines=Objects(layout.machines, Machine, "machine", layout.lock("machines")),
        snapshots=Objects(layout.snapshots, Snapshot, "snapshot", layout.lock("snapshots")),
        images=ImageLibrary(layout.images),
        leases=LeaseBook(layout.network, layout.lock("leases"), settings.subnet),
        host_key=HostKey(layout.host_key, layout.lock("host-key")),
        progress=progress,
    )


def _open_driver(settings: Settings, layout: Layout) -> Driver:
    if settings.driver == "fake":
        from ..drivers.fake.driver import FakeDriver

        return FakeDriver(layout.home / "fake")
    if settings.driver == "libvirt":
        return _open_libvirt(settings, layout)
    from ..drivers.qemu.driver import QemuDriver

    return QemuDriver()


def _open_libvirt(settings: Settings, layout: Layout) -> Driver:
    try:
        from ..drivers.libvirt.driver import LibvirtDriver
    except ImportError as error:
        raise Unsupported(
            "libvirt's library for Python is not there",
            code="no-libvirt-python",
            tried="opening the libvirt driver",
            on="libvirt-python",
            seen=str(error),
            source_state="not touched",
            next_step="pip install 'liveclone[libvirt]', or the package python3-libvirt",
        ) from error
    return LibvirtDriver(settings.libvirt_uri, (layout.home, layout.hot))
