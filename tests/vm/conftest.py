"""Machines for the tests with real guests, as a chain: each link is made once a session, by the product itself.

    images ── lab ── source ── snapshotted ── clone
    (cache)   (home)  (boots)   (handover)     (fresh ones, as many as a test wants)

A boot takes ten seconds under emulation, a clone one: what a test needs a machine for, it does with a clone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveclone.engine import snapshot
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import Lab, Ticks, build_images

LINES = 50


@dataclass(frozen=True)
class Story:
    """The first snapshot of the source, with what was seen before and after."""

    snapshot: Snapshot
    before: Machine
    after: Machine
    lines_before: int  # of the one TCP connection that was open all the time
    lines_after: int
    app_before: dict[str, Any]
    app_after: dict[str, Any]
    vmgenid_before: str
    vmgenid_after: str
    boot_before: str  # the guest kernel's boot id
    boot_after: str
    uptime_before_s: float
    ram_inode: int  # of the file that was the source's RAM
    generation_after: dict[str, Any]  # as a program in the guest reads it


@pytest.fixture(scope="session")
def images(needs: Callable[..., None], cache_folder: Path) -> dict[str, Image]:
    needs("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", root=True)
    return build_images(cache_folder)


@pytest.fixture(scope="session")
def lab(images: dict[str, Image]) -> Iterator[Lab]:
    """The home that the environment names, so that a command started by a test works in it too."""
    lab = Lab(Path(os.environ["LIVECLONE_HOME"]), Path(os.environ["LIVECLONE_HOT"]), images)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def source(lab: Lab) -> Machine:
    """A machine that was started from cold; its manifest changes with each snapshot, so reload it."""
    source = lab.boot("web")
    lab.shell(source, "systemctl is-system-running --wait || :")  # sshd serves too
    return source


@pytest.fixture(scope="session")
def story(lab: Lab, source: Machine) -> Story:
    """Take the first snapshot, by handover, while a client reads from the source."""

    def look() -> tuple[str, str, dict[str, Any]]:
        genid = lab.qmp(source, "query-vm-generation-id")["guid"]
        boot_id = lab.shell(source, "cat /proc/sys/kernel/random/boot_id")
        return genid, boot_id, lab.http(source, "/identity")

    async def take() -> tuple[Snapshot, int, int]:
        ticks = await Ticks.open(lab, source)
        await ticks.more(LINES)
        lines = ticks.count
        taken = await snapshot.take(lab.ctx, snapshot.Request(machine=source.id, name="warm"))
        await ticks.drain()
        await ticks.more(LINES)
        await ticks.close()
        return taken, lines, ticks.count

    lab.shell(source, "echo of-the-source > /var/lib/written; sync; echo unsynced > /var/lib/unsynced")
    uptime_s = float(lab.shell(source, "cut -d' ' -f1 /proc/uptime"))
    before, (genid, boot_id, app) = lab.reload(source), look()
    assert before.memory is not None
    ram_inode = Path(before.memory.path).stat().st_ino
    taken, lines_before, lines_after = lab.wait(take())
    genid_after, boot_id_after, app_after = look()
    generation = json.loads(lab.shell(source, "cat /run/liveclone/generation"))
    lab.shell(source, "echo later > /var/lib/written; rm /var/lib/unsynced; echo new > /var/lib/new; sync")
    return Story(
        snapshot=taken,
        before=before,
        after=lab.reload(source),
        lines_before=lines_before,
        lines_after=lines_after,
        app_before=app,
        app_after=app_after,
        vmgenid_before=genid,
        vmgenid_after=genid_after,
        boot_before=boot_id,
        boot_after=boot_id_after,
        uptime_before_s=uptime_s,
        ram_inode=ram_inode,
        generation_after=generation,
    )


@pytest.fixture(scope="session")
def snapshotted(story: Story) -> Snapshot:
    """The snapshot that most clones come from."""
    return story.snapshot


@pytest.fixture
def clone(lab: Lab, snapshotted: Snapshot) -> Iterator[Machine]:
    """A fresh clone, for this test alone."""
    made = lab.clone(snapshotted)
    yield made
    if any(machine.id == made.id for machine in lab.ctx.machines.list()):
        lab.remove(made)


@pytest.fixture(autouse=True)
def _in_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: every machine runs or is stopped properly, one writer a disk, nothing is left over."""
    yield
    lab = request.node.funcargs.get("lab")
    if lab is not None:
        faults = lab.find_faults()
        assert not faults, "\n".join(faults)
