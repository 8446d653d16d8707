"""The server action on a real cloud: switched off, on a host that cannot, and where it can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from liveclone_nova import capture

from . import configs
from .cloud import Cloud, wait_until
from .conftest import Boot, wait_for_active, wait_for_tick

NOT_YET = getattr(capture, "NOT_YET", None)
needs_capture = pytest.mark.skipif(NOT_YET is not None, reason=f"NOT THERE YET: {NOT_YET}")
BODY = {"live_snapshot": {"name": "warm"}}


def act(demo: Any, server: Any, address: str = "") -> tuple[int, Any]:
    """POST the action, to that nova-api or the one in the catalogue; return status and answer."""
    response = demo.compute.post(f"{address}/servers/{server.id}/action", json=BODY, raise_exc=False)
    return response.status_code, response.json()


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


@pytest.mark.skipif(NOT_YET is None, reason="the capture is there")
def test_the_host_says_what_bars_it(cloud: Cloud, demo: Any, boot: Boot) -> None:
    """A call over the message queue to the plugin's endpoint in nova-compute, which asks libvirt, and back."""
    server, images = boot("web"), {image.id for image in demo.image.images()}
    status, answer = act(demo, server)
    assert status == 409
    assert answer["conflictingRequest"]["message"].endswith(f": {NOT_YET}.")
    shown = cloud.command("server", "live", "snapshot", "web")
    assert shown.returncode != 0
    assert str(NOT_YET) in shown.stderr
    assert {image.id for image in demo.image.images()} == images
    assert demo.compute.get_server(server.id).task_state is None


@needs_capture
def test_three_clones_of_a_running_server_go_on_where_it_was(demo: Any, guest: Any, boot: Boot) -> None:
    source = boot("web")
    before = wait_for_tick(demo, source, after=2)
    status, answer = act(demo, source)
    assert status == 202
    image_id = answer["image_id"]
    try:
        wait_until(lambda: demo.image.get_image(image_id).status == "active", "the image is not active")
        assert wait_for_tick(demo, source, after=before.count).word == before.word
        for number in range(3):
            clone = boot(f"clone-{number}", image_id=image_id)
            tick = wait_for_tick(demo, clone)
            assert tick.word == before.word, "it was booted, not cloned"
            assert tick.count > before.count
            assert tick.disk == f"{tick.word}.{tick.count}"
        assert len({tuple(server.addresses["wires"][0].values()) for server in demo.compute.servers()}) == 4
        wait_for_active(demo, source)
    finally:
        demo.image.delete_image(image_id)
    assert [image.id for image in demo.image.images(visibility="private", is_hidden=True)] == []


@needs_capture
def test_the_command_line_takes_one_and_waits(cloud: Cloud, demo: Any, boot: Boot) -> None:
    boot("web")
    done = cloud.command(
        "server", "live", "snapshot", "web", "--wait", "-f", "value", "-c", "id", "-c", "status"
    )
    assert done.returncode == 0, done.stderr
    image_id, status = done.stdout.split()
    assert status == "active"
    demo.image.delete_image(image_id)
