"""An audit finds every value that two machines of a family have in common, whoever they are."""

from __future__ import annotations

import pytest

from liveclone.engine import audit, run
from liveclone.errors import GuestError, NotFound, Refused
from liveclone.identity.compare import compare
from liveclone.model.audit import Audit, Equal, Member, Role
from liveclone.model.identity import ItemStatus

from .world import World

ITEMS = {"rng", "hostname", "machine_id"}


def member(name: str, role: Role = Role.CLONE, **digests: str) -> Member:
    return Member(id=name, name=name, role=role, digests=digests)


def found(audited: Audit) -> set[tuple[str, str, str]]:
    return {(one.what, min(one.first, one.second), max(one.first, one.second)) for one in audited.equal}


def test_each_pair_is_compared_once() -> None:
    members = [member(name, rng=name, host="same" if name in "bcd" else name) for name in "abcd"]
    pairs, equal = compare(members)
    assert pairs == 6
    assert {(one.first, one.second) for one in equal} == {("b", "c"), ("b", "d"), ("c", "d")}
    assert {one.what for one in equal} == {"host"}


def test_equal_digests_of_different_things_mean_nothing() -> None:
    assert compare([member("a", rng="1"), member("b", host="1")]) == (1, ())


def test_a_source_is_what_it_was_in_its_snapshot_and_a_clone_is_not() -> None:
    recorded, source, clone = (
        member(name, role, host="x")
        for name, role in (("s", Role.SNAPSHOT), ("web", Role.SOURCE), ("c", Role.CLONE))
    )
    assert compare([recorded, source]) == (0, ())
    pairs, equal = compare([recorded, source, clone])
    assert pairs == 2
    assert set(equal) == {
        Equal(what="host", first="s", second="c"),
        Equal(what="host", first="web", second="c"),
    }


async def test_a_family_is_distinct(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    await world.clone("web-1", 3)
    audited = await audit.audit(world.ctx, "web-1")
    assert audited.equal == ()
    roles = [one.role for one in audited.members]
    assert roles == [Role.SNAPSHOT, Role.SOURCE, *[Role.CLONE] * 3]
    assert audited.pairs == 10 - 1
    for one in audited.members:
        assert one.digests.keys() >= ITEMS, "each was asked"
    for one in audited.members[1:]:
        assert "draw kernel-uuid" in one.digests, "each drew"
    await world.remove_all()


async def test_what_is_shared_by_its_nature_is_no_equality(world: World) -> None:
    await world.run("web")
    await world.write("web", "/sys/class/dmi/id/product_uuid", "f0c9a1ce-7d5e-4b9c-9f0e-0e3f7f9d2a11\n")
    await world.snapshot("web")
    for result in await world.clone("web-1", 2):
        assert result.evidence is not None and result.evidence.verified
        (item,) = [one for one in result.evidence.items if one.item == "dmi_uuid"]
        assert item.status is ItemStatus.SHARED
        assert item.before
    assert (await audit.audit(world.ctx, "web-1")).equal == ()
    await world.remove_all()


async def test_what_two_have_in_common_is_found(world: World) -> None:
    """Evidence was good when they were made; it is what they are now that counts."""
    await world.run("web")
    await world.write("web", "/etc/machine-id", "0" * 31 + "1\n")
    await world.snapshot("web")
    await world.clone("web-1", 3)
    for name in ("web-1-c1", "web-1-c3"):
        await world.write(name, "/etc/machine-id", "0" * 31 + "2\n")
    await world.write("web-1-c2", "/etc/machine-id", "0" * 31 + "1\n")
    audited = await audit.audit(world.ctx, "web-1")
    assert found(audited) == {
        ("machine_id", "web-1-c1", "web-1-c3"),
        ("machine_id", "web", "web-1-c2"),
        ("machine_id", "snapshot web-1", "web-1-c2"),
    }
    await world.remove_all()


async def test_equal_draws_are_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.DRAWS, "broken", "echo 4")  # chosen by fair dice roll
    await world.run("web")
    await world.snapshot("web")
    await world.clone("web-1")
    assert found(await audit.audit(world.ctx, "web-1")) == {("draw broken", "web", "web-1-c1")}
    await world.remove_all()


async def test_a_machine_that_cannot_be_asked_is_left_out_or_fails_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run("web")
    await world.snapshot("web")
    await world.clone("web-1", 2)
    await run.stop(world.ctx, "web-1-c2", force=True)
    audited = await audit.audit(world.ctx, "web-1")
    assert [(one.name, one.reason) for one in audited.left_out] == [("web-1-c2", "it does not run")]
    monkeypatch.setattr(audit, "DRAWS", {"nothing": "false"})
    with pytest.raises(GuestError) as silent:
        await audit.audit(world.ctx, "web-1")
    assert silent.value.code == "no-draw"
    await world.remove_all()


async def test_one_machine_is_no_family(world: World) -> None:
    with pytest.raises(NotFound):
        await audit.audit(world.ctx, "web-1")
    await world.run("web")
    await world.snapshot("web")
    with pytest.raises(Refused) as refused:
        await audit.audit(world.ctx, "web-1")
    assert refused.value.code == "nothing-to-compare"
    await world.remove_all()
