"""Whatever goes wrong with whichever item, the clone never gets a NIC. The items are those that the agent has."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from liveclone.drivers.fake.connection import FakeConnection
from liveclone.engine import identify
from liveclone.engine.clone import Result
from liveclone.errors import GuestError, TimedOut
from liveclone.guest.items import Item, load_items
from liveclone.model.identity import ItemStatus
from liveclone.model.network import Nic, Port

from .world import World, failing

REQUIRED = [item for item in load_items() if item.required]

# An agent may say of what has no value of its own that it was set, though it was not. Where the host sees that, and how.
SEEN = {"clock": "behind the host's, though it was set"}

HAZARDS = Path(__file__).resolve().parents[3] / "docs" / "hazards.md"


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of all machines that are given a NIC, as it happens."""
    names: list[str] = []
    plug = FakeConnection.plug

    async def watched(self: FakeConnection, nic: Nic, ports: tuple[Port, ...], tap_fd: int | None) -> None:
        names.append(self.name)
        await plug(self, nic, ports, tap_fd)

    monkeypatch.setattr(FakeConnection, "plug", watched)
    return names


def name_of(kind: str, item: Item) -> str:
    return f"{kind}-{item.name.replace('_', '-')}"


async def clone_with(world: World, kind: str, items: list[Item], **options: bool) -> list[Result]:
    """Return a clone for each item, in which that one goes wrong."""
    names = [name_of(kind, item) for item in items]
    faults = ",".join(f"{name}:{kind}:{item.name}" for name, item in zip(names, items, strict=True))
    return await world.clone("web-1", len(names), names=names, faults=faults, **options)


def seen_of(result: Result) -> str:
    assert isinstance(result.error, GuestError), result.name
    assert result.error.code == "not-verified", result.error.fields()
    return result.error.seen


async def find_items(world: World, status: ItemStatus) -> list[Item]:
    """Return the required items of which a good clone reports this."""
    (result,) = await world.clone("web-1", names=["good"])
    assert result.evidence is not None
    found = {report.item for report in result.evidence.items if report.status is status}
    await world.remove("good")
    return [item for item in REQUIRED if item.name in found]


@pytest.mark.usefixtures("keys")
async def test_no_item_can_fail_lie_or_hang_unnoticed(
    world: World, plugged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    await world.snapshot("web")
    valued = await find_items(world, ItemStatus.CHANGED)
    assert {item.name for item in valued} >= {"rng", "hostname", "machine_id", "ssh_host_keys"}
    plugged.clear()

    for item, result in zip(REQUIRED, await clone_with(world, "fail", REQUIRED), strict=True):
        assert f"{item.name}: its reset failed: RuntimeError: asked to fail" in seen_of(result)
    for item, result in zip(valued, await clone_with(world, "lie", valued), strict=True):
        assert f"{item.name}: its new value is the snapshot's" in seen_of(result)
    with monkeypatch.context() as impatient:
        impatient.setattr(identify, "IDENTIFY_DEADLINE_S", 0.5)
        hanging = await clone_with(world, "stall", REQUIRED)
    for item, result in zip(REQUIRED, hanging, strict=True):
        assert isinstance(result.error, TimedOut), item.name
        assert result.error.code == "agent-deadline"
        assert f"item {item.name} still ran" in result.error.seen

    assert plugged == []
    assert await world.find_faults() == []
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    await world.clone("web-1", names=["good"])
    assert plugged == ["good"]
    await world.remove_all()


async def test_a_lie_about_what_has_no_value_is_seen_where_it_can_be(
    world: World, plugged: list[str]
) -> None:
    await world.run("web")
    await world.snapshot("web")
    items = await find_items(world, ItemStatus.CONFIGURED)
    assert {item.name for item in items} >= SEEN.keys()
    plugged.clear()
    await asyncio.sleep(1.0)  # a clock is found that is off by more than an answer takes
    for item, result in zip(items, await clone_with(world, "lie", items), strict=True):
        if item.name in SEEN:
            assert SEEN[item.name] in seen_of(result)
        else:
            assert result.error is None
    assert set(plugged) == {name_of("lie", item) for item in items if item.name not in SEEN}
    await world.remove_all()


def test_each_item_is_in_the_table_of_hazards() -> None:
    named = {
        name for line in HAZARDS.read_text().splitlines() for name in re.findall("`(.*?)`", first_cell(line))
    }
    assert {item.name for item in load_items()} <= named


def first_cell(line: str) -> str:
    return line.split(" | ")[0] if line.startswith("| ") else ""


async def test_an_item_that_any_agent_leaves_out_is_missed(world: World, plugged: list[str]) -> None:
    """Also when the source's agent never had it: the host knows the list by itself."""
    await world.run("web", faults="*:omit:rng")
    taken = await world.snapshot("web")
    taken = world.ctx.snapshots.load(taken.id)
    items = tuple(item for item in taken.items if item.item != "rng")
    world.ctx.snapshots.save(taken.replace(items=items))
    plugged.clear()
    for item, result in zip(REQUIRED, await clone_with(world, "omit", REQUIRED), strict=True):
        assert f"{item.name}: the agent did not report it" in seen_of(result)
    assert plugged == []
    await world.remove_all()


async def test_a_value_that_the_source_has_since_its_snapshot_is_no_new_one(
    world: World, plugged: list[str]
) -> None:
    await world.run("web")
    with failing("web:twin:rng"):  # of the process in which it goes on
        await world.snapshot("web")
    plugged.clear()
    (result,) = await world.clone("web-1", names=["bad"], faults="bad:twin:rng")
    assert "rng: its new value is that of web" in seen_of(result)
    assert plugged == []
    await world.remove_all()


async def test_a_nic_with_a_mac_that_was_not_given_is_taken_away(world: World) -> None:
    """The guest says that it uses the one it was given; what the hypervisor sees counts."""
    await world.run("web")
    await world.snapshot("web")
    (result,) = await world.clone("web-1", names=["bad"], faults="bad:forge:nic", keep_failed=True)
    assert "network: the hypervisor sees 02:66" in seen_of(result)
    assert world.machine("bad").quarantined
    await world.check_runs("bad", nics=())
    evidence = world.ctx.evidence(world.ctx.snapshots.find("web-1").id).load(world.machine("bad").id)
    assert evidence is not None and evidence.cards is not None
    assert evidence.cards.guest == evidence.cards.given != evidence.cards.host
    await world.remove_all()


async def test_a_guest_that_does_not_let_go_of_a_wrong_nic_is_ended(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    faults = "bad:forge:nic,bad:stuck:nic"
    (result,) = await world.clone("web-1", names=["bad"], faults=faults, keep_failed=True)
    assert "network: the hypervisor sees 02:66" in seen_of(result)
    assert world.machine("bad").quarantined
    assert len(world.processes()) == 1, "the source's alone"
    await world.remove_all()
