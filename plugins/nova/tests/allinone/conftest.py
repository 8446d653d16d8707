"""The cloud, once for all tests of this folder, and servers in it.

running_cloud ── guest ── cloud ── boot, take
 (a minute)    (in Glance)  (inside its network)  (deleted again)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import guests
from .borrowed import ROOT
from .cloud import NEEDED, Cloud, wait_until

Boot = Callable[..., Any]
Take = Callable[[Any], str]


@pytest.fixture(scope="session")
def cache_folder() -> Path:
    """Return a folder that outlives the run: for the guest's image, which takes half a minute to build."""
    folder = Path(os.environ.get("LIVECLONE_DEV_CACHE") or ROOT / ".dev" / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="package")
def running_cloud(cache_folder: Path) -> Iterator[Cloud]:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [tool for tool in NEEDED if shutil.which(tool, path=path) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if missing and os.environ.get("CI", "").lower() in ("true", "1", "yes"):
        pytest.fail(f"missing here, and CI demands them: {', '.join(missing)}", pytrace=False)
    if missing:
        pytest.skip(f"missing here: {', '.join(missing)}")
    with Cloud(cache_folder) as cloud:
        yield cloud
    assert find_processes(cloud.folder) == []
    assert not cloud.folder.exists()


@pytest.fixture(scope="package")
def guest(running_cloud: Cloud, cache_folder: Path) -> dict[str, Any]:
    """Put what servers need into the cloud; return the arguments of create_server."""
    image = guests.build(cache_folder)
    with running_cloud.inside():
        admin = running_cloud.connect("admin")
        flavor = admin.compute.create_flavor(
            name="small", ram=guests.RAM_MIB, vcpus=1, disk=guests.DISK_GIB, is_public=True
        )
        network = admin.network.create_network(name="wires", shared=True)
        admin.network.create_subnet(network_id=network.id, cidr="10.77.0.0/24", ip_version=4)
        return {
            "image_id": guests.upload(admin.image, image),
            "flavor_id": flavor.id,
            "networks": [{"uuid": network.id}],
        }


@pytest.fixture
def cloud(running_cloud: Cloud) -> Iterator[Cloud]:
    """Return the cloud; the test is in its network."""
    with running_cloud.inside():
        yield running_cloud


@pytest.fixture
def demo(cloud: Cloud) -> Iterator[Any]:
    """Return a connection of an ordinary user."""
    with cloud.connect() as connection:
        yield connection


@pytest.fixture
def boot(cloud: Cloud, guest: dict[str, Any], demo: Any) -> Iterator[Boot]:
    """Return what makes a server and waits until it is active; they are deleted, and nothing of them may be left."""
    made = []

    def make(name: str, **other: Any) -> Any:
        server = demo.compute.create_server(name=name, **guest | other)
        made.append(server)
        return wait_for_active(demo, server)

    yield make
    for server in made:
        demo.compute.delete_server(server, ignore_missing=True)
    wait_until(lambda: not list(demo.compute.servers()), "a server is not deleted")
    assert cloud.list_domains() == []
    assert cloud.list_taps() == []
    assert cloud.list_instance_folders() == []
    assert [port.id for port in demo.network.ports()] == []


@pytest.fixture
def take(demo: Any) -> Iterator[Take]:
    """Return what takes a live snapshot of a server, waits until it is there, and returns its image's id; it is deleted."""
    made = []

    def make(server: Any) -> str:
        status, answer = act(demo, server)
        assert status == 202, answer
        image_id = str(answer["image_id"])
        made.append(image_id)
        wait_until(lambda: demo.image.get_image(image_id).status == "active", "the image is not active")
        wait_for_active(demo, server)
        return image_id

    yield make
    for image_id in made:
        demo.image.delete_image(image_id, ignore_missing=True)


@pytest.fixture
def no_leftovers(cloud: Cloud) -> Iterator[None]:
    """Wait, when all servers and images of the test are deleted, until nothing is left of live snapshots, anywhere.

    By `usefixtures`, so that it is there before `boot`, and looks after it.
    """
    yield
    images = cloud.connect("admin").image
    hidden = "a state image is left in Glance"
    wait_until(lambda: not list(images.images(is_hidden=True)), hidden)
    wait_until(lambda: not cloud.list_leftovers(), f"left on the host: {cloud.list_leftovers()}")


def find_processes(folder: Path) -> list[str]:
    """Return the processes whose command line or environment names something in a folder: each program of a cloud does."""
    found, words = [], os.fsencode(folder) + b"/"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if words in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
    return found


def wait_for_active(demo: Any, server: Any) -> Any:
    """Wait until a server runs and nothing is done to it; return it as it is then."""

    def is_idle() -> bool:
        nonlocal server
        server = demo.compute.get_server(server.id)
        assert server.status != "ERROR", server.fault
        return server.status == "ACTIVE" and server.task_state is None

    wait_until(is_idle, f"{server.name} is not active")
    return server


def act(demo: Any, server: Any, address: str = "") -> tuple[int, Any]:
    """POST the action, to that nova-api or the one in the catalogue; return status and answer."""
    response = demo.compute.post(
        f"{address}/servers/{server.id}/action", json={"live_snapshot": {"name": "warm"}}, raise_exc=False
    )
    return response.status_code, response.json()


def read_ticks(demo: Any, server: Any) -> list[guests.Tick]:
    """Return what the guest of a server has said so far."""
    return guests.read_ticks(demo.compute.get_server_console_output(server)["output"] or "")


def wait_for_tick(demo: Any, server: Any, after: int = 0, agent: str = "") -> guests.Tick:
    """Wait until the guest of a server has counted beyond a number, and has such an agent; return what it then says."""
    seen: list[guests.Tick] = []

    def has_ticked() -> bool:
        ticks = read_ticks(demo, server)
        seen.extend(tick for tick in ticks if tick.count > after and agent in ("", tick.agent))
        return bool(seen)

    wait_until(has_ticked, f"the guest of {server.name} does not run")
    return seen[-1]
