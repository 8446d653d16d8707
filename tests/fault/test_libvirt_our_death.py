"""Our process is killed at every named step of an adopted domain's snapshot and of its clones; `repair` settles it.

libvirtd knows nothing of that: what we had asked for it carries out.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from liveclone.drivers.libvirt import tickets
from liveclone.drivers.libvirt.hook_program import TICKET_LIFE_S
from liveclone.model.base import encode
from liveclone.model.snapshot import Snapshot
from tests.fault.domains import ADDRESS_WAIT_S, Shop, find_tickets
from tests.machines import Operation, find_points

SNAPSHOT = [*find_points("snapshot"), *find_points("stream")]
SOON = {"wiring.ADDRESS_WAIT_S": ADDRESS_WAIT_S}
CLONE = find_points("clone")


@pytest.mark.parametrize("point", SNAPSHOT)
def test_a_snapshot(shop: Shop, point: str) -> None:
    with Operation(shop.lab, "snapshot", kill_at=point, machine=shop.machine.id) as operation:
        assert operation.result() == {"killed": True}
    assert shop.lab.repair() == ([shop.machine.name] if point != "snapshot.done" else [])
    shop.check()
    assert len(shop.lab.ctx.snapshots.list()) == (point == "snapshot.done")


def test_an_overlay_is_not_kept_before_the_snapshot_stands(shop: Shop) -> None:
    point, source = "snapshot.committed", shop.machine.id
    with Operation(shop.lab, "snapshot", kill_at=point, machine=source, keep_overlay=True) as operation:
        assert operation.result() == {"killed": True}
    assert shop.look()["disks"] != shop.before["disks"]
    assert shop.lab.repair() == [shop.machine.name]
    shop.check()
    assert shop.lab.ctx.snapshots.list() == []


@pytest.mark.parametrize("point", CLONE)
def test_a_clone(shop: Shop, taken: Snapshot, point: str) -> None:
    wanted = {"snapshot": taken.id, "names": ["doomed"]}
    with Operation(shop.lab, "clone", kill_at=point, deadlines=SOON, **wanted) as operation:
        assert operation.result() == {"killed": True}
    made = [machine for machine in shop.lab.ctx.machines.list() if machine.name == "doomed"]
    shop.lab.repair()
    if point == "clone.ready":
        assert shop.lab.shell(made[0], "cat /root/note") == "then"
        shop.lab.remove(*made)
    shop.check()
    assert shop.find_left() == []


def test_tickets(shop: Shop, taken: Snapshot, tmp_path: Path) -> None:
    """Our own goes, whatever its age; another home's stays as long as its clone may be on its way."""
    image = tmp_path / "image"
    image.touch()

    def issue(age_s: float) -> tickets.Ticket:
        ident = str(uuid.uuid4())
        ticket = tickets.issue(tickets.FOLDER, uuid=ident, name="theirs", image=image, memory_dir=tmp_path)
        older = encode(ticket.replace(issued_s=ticket.issued_s - age_s))
        (tickets.FOLDER / f"{ident}.json").write_bytes(older)
        return ticket

    wanted = {"snapshot": taken.id, "names": ["doomed"]}
    with Operation(shop.lab, "clone", kill_at="clone.started", deadlines=SOON, **wanted) as operation:
        assert operation.result() == {"killed": True}
    assert [path.suffix for path in find_tickets(shop.lab.ctx.layout.hot)] == [".json"]
    theirs, forgotten = issue(0.0), issue(TICKET_LIFE_S + 1.0)
    try:
        shop.lab.repair()
        assert [*find_tickets(shop.lab.ctx.layout.hot)] == []
        assert [path.stem for path in find_tickets(tmp_path)] == [theirs.uuid]
    finally:
        for ticket in (theirs, forgotten):
            tickets.withdraw(tickets.FOLDER, ticket.uuid)
    shop.check()
    assert shop.find_left() == []
