"""The server action on a real cloud: switched off, on a host that cannot, and where it can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openstack.exceptions import ForbiddenException

from . import configs
from .cloud import Cloud, wait_until
from .conftest import Boot, Take, act, read_ticks, wait_for_active, wait_for_tick
from .guests import Tick


@pytest.fixture
def novas_own_driver(cloud: Cloud) -> Iterator[None]:
    cloud.start_compute(configs.THEIR_DRIVER)
    yield
    cloud.start_compute(configs.OUR_DRIVER)


def test_without_the_paste_line_there_is_no_such_action(cloud: Cloud, demo: Any, boot: Boot) -> None:
    address = cloud.start_second_api(configs.THEIR_ROUTER)
    status, answer = act(demo, boot("web"), address)
    assert (status, answer["badRequest"]["message"]) == (400, "There is no such action: live_snapshot")


@pytest.mark.usefixtures("novas_own_driver")
def test_a_host_with_novas_own_driver_has_no_live_snapshots(demo: Any, boot: Boot) -> None:
    status, answer = act(demo, boot("web"))
    assert status == 409
    assert "its host has no live snapshots" in answer["conflictingRequest"]["message"]


@pytest.fixture
def source(demo: Any, boot: Boot) -> Any:
    """A server that has run for a while."""
    server = boot("web")
    wait_for_tick(demo, server, after=2, agent="yes")
    return server


@pytest.mark.usefixtures("no_leftovers")
def test_three_servers_go_on_where_a_running_one_was(
    cloud: Cloud, demo: Any, boot: Boot, take: Take, source: Any
) -> None:
    before = read_ticks(demo, source)[-1]
    image_id = take(source)
    last = read_ticks(demo, source)[-1]
    clones = [boot(f"clone-{number}", image_id=image_id) for number in range(3)]

    firsts = set()
    for clone in clones:
        wait_for_tick(demo, clone, after=last.count + 2)  # it runs on, and beyond the source's snapshot
        ticks = read_ticks(demo, clone)
        assert {tick.word for tick in ticks} == {before.word}, "it was booted, not restored"
        assert_no_tick_is_missing(ticks)
        assert ticks[-1].mac == mac_of(demo, clone)
        assert {tick.mac for tick in ticks} <= {"none", ticks[-1].mac}, "it had another one's card"
        assert cloud.why_memory_is_not_shared(clone) is None
        assert ticks[-1].host == clone.name != before.host
        assert {tick.host for tick in ticks if tick.mac != "none"} == {clone.name}, (
            "a card before its identity"
        )
        assert read_event(demo, clone).startswith("Success: verified and its cards")
        firsts.add(ticks[0].count)
    assert len(firsts) == 1, "they start at different instants"
    assert before.count < min(firsts) <= last.count

    wait_for_tick(demo, source, after=last.count)
    ticks = read_ticks(demo, source)
    assert_no_tick_is_missing(ticks)
    assert (ticks[0].count, {tick.word for tick in ticks}) == (1, {before.word})
    assert before.mac == ticks[-1].mac == mac_of(demo, source)
    assert sorted(cloud.list_taps()) == sorted(f"tap{port.id[:11]}" for port in demo.network.ports())
    for what in ("mac_address", "fixed_ips"):
        assert len({str(port[what]) for port in demo.network.ports()}) == 4, what
    assert "live_snapshot" in [action.action for action in demo.compute.server_actions(source)]


@pytest.mark.usefixtures("no_leftovers")
def test_the_command_line_takes_one_and_starts_a_server(
    cloud: Cloud, demo: Any, source: Any, guest: dict[str, Any]
) -> None:
    def call(*words: str) -> str:
        done = cloud.command(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    show = ("-f", "value", "-c", "id", "-c", "status")
    shown = call(
        "server", "live", "snapshot", "web", "--name", "warm", "--property", "stage=1", "--wait", *show
    )
    image_id, status = shown.split()
    assert status == "active"
    assert demo.image.get_image(image_id).properties["stage"] == "1"
    flavor, (network,) = guest["flavor_id"], guest["networks"]
    call(
        "server",
        "create",
        "--image",
        "warm",
        "--flavor",
        flavor,
        "--network",
        network["uuid"],
        "--wait",
        "clone",
    )
    try:
        clone = demo.compute.find_server("clone", ignore_missing=False)
        assert wait_for_tick(demo, clone).word == read_ticks(demo, source)[0].word
    finally:
        call("server", "delete", "--wait", "clone")
        call("image", "delete", "warm")


@pytest.mark.usefixtures("no_leftovers")
def test_one_that_everybody_can_see_is_refused_unless_policy_says_so(
    cloud: Cloud, demo: Any, guest: dict[str, Any], source: Any, take: Take
) -> None:
    image_id = take(source)
    admin = cloud.connect("admin").image
    for public in (image_id, admin.get_image(image_id).properties["live_snapshot_state"]):
        admin.update_image(public, visibility="public")
    with cloud.connect("other") as other:
        with pytest.raises(ForbiddenException, match="os-live-snapshot:clone"):
            other.compute.create_server(name="clone", **guest | {"image_id": image_id})
        address = cloud.start_second_api(configs.OUR_ROUTER, {"os_compute_api:os-live-snapshot:clone": "@"})
        wanted = {"name": "clone", "imageRef": image_id, "flavorRef": guest["flavor_id"]}
        body = {"server": wanted | {"networks": guest["networks"]}}
        answer = other.compute.post(f"{address}/servers", json=body).json()
        server = other.compute.get_server(answer["server"]["id"])
        try:
            wait_for_active(other, server)
            assert wait_for_tick(other, server).word == read_ticks(demo, source)[0].word
        finally:
            other.compute.delete_server(server)
            wait_until(lambda: not list(other.compute.servers()), "the server is not deleted")


def assert_no_tick_is_missing(ticks: list[Tick]) -> None:
    """The guest has counted on and written to its disk all the time, whatever was done to it."""
    counts = [tick.count for tick in ticks]
    assert counts == list(range(counts[0], counts[-1] + 1))
    assert {tick.disk for tick in ticks} == {f"{tick.word}.{tick.count}" for tick in ticks}


def read_event(demo: Any, server: Any) -> str:
    """Return what its owner is told of a server's identity."""
    (request,) = (one.request_id for one in demo.compute.server_actions(server) if one.action == "create")
    path = f"/servers/{server.id}/os-instance-actions/{request}"
    answer = demo.compute.get(path, microversion="2.84").json()["instanceAction"]
    (event,) = (one for one in answer["events"] if one["event"] == "liveclone_identity")
    assert "details" not in event
    return str(event["result"])


def mac_of(demo: Any, server: Any) -> str:
    (port,) = demo.network.ports(device_id=server.id)
    return str(port.mac_address)
