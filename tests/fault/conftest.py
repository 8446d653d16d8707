"""Machines that may come to harm, in a home of their own, and what must hold after each harm that was done to one.

    sources.ready(HANDOVER)    a machine whose RAM is its own      started anew when it has handed over
           .ready(BACKGROUND)  a clone of `base`                   made anew when it is gone
           .ready(STREAM)      a clone of `cold`, whose hot image is gone

They are light guests: without systemd one is up in a third of the time. `base` and `cold` are snapshots of one machine that
served only for that. A test leaves the sources as they are; the next one takes what can still be used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveclone.host import process
from liveclone.model.image import Image
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.snapshot import CaptureMethod, Snapshot
from tests.machines import Lab, build_images

NEEDED = {
    CaptureMethod.HANDOVER: MemorySource.SHARED_HOT,
    CaptureMethod.BACKGROUND: MemorySource.PRIVATE_HOT,
    CaptureMethod.STREAM: MemorySource.PRIVATE_DISK,
}


@dataclass(frozen=True)
class State:
    """What a source had before it was harmed: in the memory of its application, in its page cache, on its disk."""

    machine: Machine
    token: str
    mark: str


class Sources:
    """See the module."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._snapshots: dict[CaptureMethod, Snapshot] = {}

    def ready(self, method: CaptureMethod, mark: str) -> State:
        """Return a running machine that can be captured by `method`, with `mark` written into its memory and disk."""
        machine = self._find(method) or self._make(method)
        lab = self.lab
        lab.shell(machine, f"echo {mark} > /var/lib/synced; sync; echo {mark} > /var/lib/mark")
        return State(lab.reload(machine), lab.http(machine)["token"], mark)

    def snapshot(self, method: CaptureMethod) -> Snapshot:
        """Return `base` or `cold`."""
        if not self._snapshots:
            self._take_both()
        return self._snapshots[method]

    def _find(self, method: CaptureMethod) -> Machine | None:
        for machine in self.lab.ctx.machines.list():
            if machine.name != method.value:
                continue
            running = process.is_alive(machine.process)
            if running and machine.memory and machine.memory.source is NEEDED[method]:
                return machine
            if method is CaptureMethod.HANDOVER:
                self.lab.stop(machine, force=True)
                return self.lab.start(machine)
            self.lab.remove(machine)
        return None

    def _make(self, method: CaptureMethod) -> Machine:
        if method is CaptureMethod.HANDOVER:
            return self.lab.boot(method.value, "light")
        return self.lab.clone(self.snapshot(method), names=[method.value])

    def _take_both(self) -> None:
        lab = self.lab
        origin = lab.boot("origin", "light")
        base = lab.snapshot(origin, "base")
        cold = lab.snapshot(origin, "cold", wait_sealed=True)
        lab.remove(origin)
        assert cold.hot is not None
        Path(cold.hot.path).unlink()
        self._snapshots = {CaptureMethod.BACKGROUND: lab.wait_sealed(base), CaptureMethod.STREAM: cold}

    def check_goes_on(self, state: State) -> None:
        """Fail unless the machine runs as if nothing had been: application, memory, disk, network, generation."""
        lab, machine = self.lab, self.lab.reload(state.machine)
        assert process.is_alive(machine.process)
        assert machine.nics == state.machine.nics
        assert lab.http(machine)["token"] == state.token
        assert lab.nics(machine) == ["nic0"]
        seen = lab.shell(
            machine,
            "cat /var/lib/mark; echo more > /var/lib/more; sync; echo 3 > /proc/sys/vm/drop_caches;"
            "cat /var/lib/more /var/lib/synced /run/liveclone/generation",
        )
        mark, more, synced, generation = seen.splitlines()
        assert (mark, more, synced) == (state.mark, "more", state.mark)
        assert json.loads(generation)["uuid"] == machine.generation.uuid

    def check_starts(self, state: State) -> None:
        """Fail unless a machine whose QEMU has died starts from its disk, on which is what was synced."""
        machine = self.lab.start(state.machine)
        assert self.lab.shell(machine, "cat /var/lib/synced") == state.mark
        assert self.lab.http(machine)["token"] != state.token


@pytest.fixture(scope="session")
def images(needs: Callable[..., None], cache_folder: Path) -> dict[str, Image]:
    needs("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", root=True)
    return build_images(cache_folder)


@pytest.fixture(scope="session")
def lab(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A home apart from the one of tests/vm."""
    lab = Lab(tmp_path_factory.mktemp("f") / "home", Path(os.environ["LIVECLONE_HOT"]) / "fault", images)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def sources(lab: Lab) -> Sources:
    return Sources(lab)


@pytest.fixture(autouse=True)
def _in_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: one writer a disk, and nothing left over of what was begun."""
    yield
    found: dict[str, Any] = request.node.funcargs
    for lab in {id(value): value for value in found.values() if isinstance(value, Lab)}.values():
        faults = lab.find_faults()
        assert not faults, "\n".join(faults)
