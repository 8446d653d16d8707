"""The synchronous door for Python programs: `liveclone.Host`.

    import liveclone

    with liveclone.Host() as host:
        web = host.run("debian", name="web")
        warm = host.snapshot("web", name="warm")
        for result in host.clone("warm", count=4):
            print(result.machine.name, result.machine.nics[0].ip)

A thin front of the engine's operations, which are coroutines; programs that have an event loop call those themselves
(`liveclone.engine.run.run(context, ...)`). Every call raises the errors of `liveclone.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Self, TypeVar

from .engine import audit, clone, execute, pool, proof, refill, remove, repair, run, scan, snapshot
from .engine.context import Progress, open_context, silent
from .engine.settings import Settings
from .engine.snapshot import Scrubbing
from .identity.policy import DEFAULT
from .model.audit import Audit
from .model.machine import Machine
from .model.network import NetworkKind, Port
from .model.parameters import Parameters
from .model.proof import Proof
from .model.scan import Scan
from .model.snapshot import CaptureMethod, Snapshot
from .units import MIB

T = TypeVar("T")


class Host:
    """This host's machines and snapshots.

    Args:
        settings: where state is kept and which driver; the environment's by default (engine/settings.py).
        progress: called with a step's name and, where known, the fraction that is done.
    """

    def __init__(self, settings: Settings | None = None, progress: Progress = silent) -> None:
        self.context = open_context(settings, progress)
        self._runner = asyncio.Runner()

    def run(
        self,
        image: str,
        *,
        name: str = "",
        ram_bytes: int = 512 * MIB,
        vcpus: int = 1,
        network: NetworkKind | None = None,
        ports: Sequence[Port] = (),
    ) -> Machine:
        """Make a machine from an image and start it; returns when it is ready."""
        request = run.Request(
            image=image, name=name, ram_bytes=ram_bytes, vcpus=vcpus, network=network, ports=ports
        )
        return self._wait(run.run(self.context, request))

    def start(self, machine: str) -> Machine:
        """Start a stopped machine."""
        return self._wait(run.start(self.context, machine))

    def stop(self, machine: str, *, force: bool = False) -> Machine:
        """Shut a machine down; with `force`, end its process."""
        return self._wait(run.stop(self.context, machine, force=force))

    def remove(self, machine: str, *, force: bool = False) -> None:
        """Remove a machine and its disk."""
        self._wait(remove.remove_machine(self.context, machine, force=force))

    def execute(self, machine: str, argv: Sequence[str]) -> tuple[int, str, str]:
        """Run a command in a guest and return its exit code and what it wrote to stdout and stderr."""
        return self._wait(execute.ask(self.context, execute.find_running(self.context, machine), argv))

    def snapshot(
        self,
        machine: str,
        *,
        name: str = "",
        method: CaptureMethod | None = None,
        wait_sealed: bool = False,
        policy: str = DEFAULT,
        scrub: Scrubbing | None = None,
        keep_overlay: bool = False,
    ) -> Snapshot:
        """Take a live snapshot, unless the policy refuses what is found in the machine; it runs on.

        With `scrub`, without its secrets (docs/scrub.md). With `keep_overlay` a machine that was adopted goes on on
        overlays beside its disks (docs/libvirt.md).
        """
        request = snapshot.Request(
            machine=machine,
            name=name,
            method=method,
            wait_sealed=wait_sealed,
            policy=policy,
            scrub=scrub,
            keep_overlay=keep_overlay,
        )
        return self._wait(snapshot.take(self.context, request))

    def clone(
        self,
        snapshot_name: str,
        *,
        count: int = 1,
        names: Sequence[str] = (),
        parameters: Sequence[Parameters] = (),
        ports: Sequence[Port] = (),
        keep_failed: bool = False,
    ) -> list[clone.Result]:
        """Start live clones; each result holds a ready machine with its evidence, or an error."""
        request = clone.Request(
            snapshot=snapshot_name,
            count=count,
            names=names,
            parameters=parameters,
            ports=ports,
            keep_failed=keep_failed,
        )
        return self._wait(clone.start(self.context, request))

    def set_pool(self, snapshot_name: str, size: int) -> pool.Pool:
        """Let so many machines wait for clones of a snapshot from now on, 0 for none; returns when they do."""
        return self._wait(refill.set_size(self.context, snapshot_name, size))

    def pools(self) -> list[pool.Pool]:
        """Return all pools."""
        return pool.list_pools(self.context)

    def drain_pool(self, snapshot_name: str) -> int:
        """End the machines that wait for clones of a snapshot, and return how many; the pool's size stays."""
        return self._wait(refill.drain(self.context, snapshot_name))

    def scan(self, machine: str, *, policy: str = DEFAULT) -> Scan:
        """Tell what in a machine is not safe to copy, judged by a policy (docs/scan.md); nothing is changed."""
        return self._wait(scan.scan(self.context, machine, policy))

    def audit(self, snapshot_name: str) -> Audit:
        """Compare a snapshot's source and clones, as they are now, each with every other."""
        return self._wait(audit.audit(self.context, snapshot_name))

    def evidence(self, machine: str) -> Proof:
        """Return a machine's signed evidence, and that of all it was compared with (docs/evidence.md)."""
        return proof.export(self.context, machine)

    def machines(self) -> list[Machine]:
        """Return all machines."""
        return self.context.machines.list()

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots."""
        return self.context.snapshots.list()

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; machines that run from it run on."""
        self._wait(remove.remove_snapshot(self.context, name))

    def repair(self) -> list[str]:
        """Settle what interrupted operations left; returns the names of the machines concerned."""
        return self._wait(repair.settle_all(self.context))

    def close(self) -> None:
        """Let go of everything; machines run on."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)
