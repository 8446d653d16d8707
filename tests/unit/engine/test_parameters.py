"""What a user gives a clone: host name, address, SSH keys, user data, metadata; what is refused, with nothing started."""

from __future__ import annotations

import json

import pytest

from liveclone.errors import Conflict, GuestError, Refused
from liveclone.model.parameters import Parameters

from .world import World

KEYS = "/root/.ssh/authorized_keys"
USER_DATA = "/var/lib/liveclone/user-data"
METADATA = "/var/lib/liveclone/metadata.json"
ANN, BOB = "ssh-ed25519 AAAA1 ann", "ssh-ed25519 AAAA2 bob"
SCRIPT = '#!/bin/sh\necho "$LIVECLONE_HOSTNAME $LIVECLONE_USER_DATA $LIVECLONE_METADATA"; exit {}\n'


async def test_each_clone_gets_its_own(world: World) -> None:
    await world.run("web")
    await world.write("web", KEYS, ANN + "\n")
    await world.write("web", USER_DATA, "the source's")
    await world.write("web", METADATA, "the source's")
    await world.snapshot("web")
    first, second = await world.clone(
        count=2,
        parameters=[
            Parameters(
                hostname="One.example",
                address="10.213.1.7",
                ssh_keys=(ANN, BOB),
                user_data="a: 1\n",
                metadata={"role": "wörker", "shard": "7"},
            )
        ],
    )
    one, two = first.machine, second.machine
    assert one is not None and two is not None
    assert one.nics[0].ip == "10.213.1.7"
    assert await world.read(one.name, "/etc/hostname") == "One.example"
    assert await world.read(two.name, "/etc/hostname") == two.name
    assert await world.read(one.name, KEYS) == f"{ANN}\n{BOB}"
    assert await world.read(two.name, KEYS) == ANN
    assert await world.read(one.name, USER_DATA) == "a: 1"
    assert await world.read(two.name, USER_DATA) == ""
    assert json.loads(await world.read(one.name, METADATA)) == {"role": "wörker", "shard": "7"}
    assert await world.read(two.name, METADATA) == ""
    await world.remove_all()


async def test_user_data_that_is_a_script_is_the_last_hook(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    (done,) = await world.clone(parameters=[Parameters(user_data=SCRIPT.format(0))])
    assert done.error is None
    (failed,) = await world.clone(parameters=[Parameters(user_data=SCRIPT.format(3), metadata={"a": "b"})])
    assert isinstance(failed.error, GuestError)
    assert (
        f"hook cloned/user-data: it ended with 3: {failed.name} {USER_DATA} {METADATA}" in failed.error.seen
    )
    await world.remove_all()


async def test_two_of_one_host_name_are_no_two_machines(world: World) -> None:
    await world.run("web")
    await world.snapshot("web")
    results = await world.clone(count=2, parameters=[Parameters(hostname="same")] * 2)
    (error,) = [result.error for result in results if result.error is not None]
    assert "hostname" in error.message
    await world.remove_all()


@pytest.mark.parametrize(
    ("given", "count", "words"),
    [
        (Parameters(hostname="no_host"), 1, "host name"),
        (Parameters(hostname="x" * 65), 1, "host name"),
        (Parameters(hostname="a..b"), 1, "host name"),
        (Parameters(ssh_keys=("ssh-ed25519",)), 1, "SSH key"),
        (Parameters(ssh_keys=(f"{ANN}\n{BOB}",)), 1, "SSH key"),
        (Parameters(user_data="x" * 70_000), 1, "user data"),
        (Parameters(metadata={"key": "x" * 70_000}), 1, "metadata"),
    ],
)
async def test_what_is_none_is_refused(world: World, given: Parameters, count: int, words: str) -> None:
    await world.run("web")
    await world.snapshot("web")
    with pytest.raises(Refused) as caught:
        await world.clone(count=count, parameters=[given])
    assert words in caught.value.message
    with pytest.raises(Refused):
        await world.clone(parameters=[Parameters()] * 2)
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    await world.remove_all()


async def test_an_address_that_cannot_be_had(world: World) -> None:
    web = await world.run("web")
    await world.snapshot("web")
    for address, kind in (
        (web.nics[0].ip, Conflict),
        ("10.213.0.1", Refused),
        ("10.214.0.9", Refused),
        ("fe80::1", Refused),
    ):
        (result,) = await world.clone(parameters=[Parameters(address=address)])
        assert isinstance(result.error, kind), address
        assert result.error.source_state == "not touched"
    assert [machine.name for machine in world.ctx.machines.list()] == ["web"]
    assert await world.find_faults() == []
    await world.remove_all()
