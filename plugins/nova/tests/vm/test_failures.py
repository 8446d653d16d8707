"""Whatever fails, the source runs as before, with its disk and its card, and nothing is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nova import exception

from liveclone_nova import conf, recovery
from liveclone_nova.conf import CONF
from liveclone_nova.exceptions import LiveSnapshotFailed

from .cloud import Cloud
from .guest import MACS, READ, WRITE

pytestmark = pytest.mark.timeout(580)
NOVA = Path(__file__).parents[2]


@pytest.fixture
def server(cloud: Cloud) -> Iterator[Any]:
    server = cloud.spawn()
    cloud.guest(server).run("A=token")
    yield server
    cloud.destroy(server)


def check_as_before(cloud: Cloud, server: Any) -> None:
    """The guest runs, on its own disk, which it writes, with its card; nothing of the capture is there."""
    (vif,) = server.get_network_info()
    disk, guest = Path(CONF.instances_path) / server.uuid / "disk", cloud.guest(server)
    assert guest.run("echo $A") == "token"
    assert guest.run(MACS) == vif["address"]
    for flags in (0, 2):  # live; VIR_DOMAIN_XML_INACTIVE
        xml = cloud.domain(server).XMLDesc(flags)
        assert f"<source file='{disk}'" in xml
        assert vif["address"] in xml
    guest.run(WRITE.format("behind"))
    assert guest.run(READ) == "behind"
    assert not [found for found in disk.parent.iterdir() if "liveclone" in found.name]
    assert not list(conf.folder("captures").iterdir())


def states_of(cloud: Cloud) -> list[str]:
    return [
        key for key, image in cloud.images.images.items() if image["properties"].get("live_snapshot_disk")
    ]


class Once:
    """Let a method fail once."""

    def __init__(self, method: Callable[..., Any], error: Exception) -> None:
        self.method, self.errors = method, [error]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return self.method(*arguments, **named)


def test_a_card_that_the_guest_does_not_let_go_of(
    cloud: Cloud, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = exception.DeviceDetachFailed(device="tap", reason="the guest is busy")
    monkeypatch.setattr(cloud.driver, "detach_interface", Once(cloud.driver.detach_interface, error))
    with pytest.raises(exception.DeviceDetachFailed):
        cloud.take(server)
    check_as_before(cloud, server)


def test_a_card_that_cannot_be_put_back_at_first(
    cloud: Cloud, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = exception.InterfaceAttachFailed(instance_uuid=server.uuid)
    monkeypatch.setattr(cloud.driver, "attach_interface", Once(cloud.driver.attach_interface, error))
    cloud.images.delete(None, cloud.take(server))
    check_as_before(cloud, server)


def test_an_upload_that_fails_leaves_no_state(
    cloud: Cloud, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, update = states_of(cloud), cloud.images.update

    def refuse_disks(
        context: Any, image_id: str, image: dict[str, Any], *arguments: Any, **named: Any
    ) -> Any:
        if image.get("disk_format") == "qcow2":
            assert len(states_of(cloud)) == len(before) + 1
            raise exception.ImageQuotaExceeded(image_id=image_id)
        return update(context, image_id, image, *arguments, **named)

    monkeypatch.setattr(cloud.images, "update", refuse_disks)
    with pytest.raises(exception.ImageQuotaExceeded):
        cloud.take(server)
    assert states_of(cloud) == before
    check_as_before(cloud, server)


def test_a_glance_with_other_digests_is_refused(
    cloud: Cloud, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, get = states_of(cloud), cloud.images.get

    def get_with_other_digest(*arguments: Any, **named: Any) -> Any:
        return {**get(*arguments, **named), "os_hash_algo": "sha256"}

    monkeypatch.setattr(cloud.images, "get", get_with_other_digest)
    with pytest.raises(LiveSnapshotFailed, match="Glance digests images by sha256"):
        cloud.take(server)
    assert states_of(cloud) == before
    check_as_before(cloud, server)


@pytest.mark.parametrize(
    ("point", "on_overlay"), [("stream.pausing", False), ("stream.frozen", True), ("stream.resumed", True)]
)
def test_nova_compute_that_is_killed(
    cloud: Cloud, server: Any, libvirtd: Any, point: str, on_overlay: bool
) -> None:
    """The next one puts the guest back on its disk, and its card in."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.die", CONF.state_path, libvirtd.uri, str(libvirtd.pid)],
        cwd=NOVA,
        env={**os.environ, "LIVECLONE_FAULT": f"{point}=kill"},
        input=json.dumps(server.obj_to_primitive()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr[-3000:]
    xml = cloud.domain(server).XMLDesc()
    assert "<interface" not in xml
    assert (".liveclone-" in xml) == on_overlay
    cloud.guest(server).run(WRITE.format("meanwhile"))
    recovery.settle_all(cloud.driver)
    assert cloud.guest(server).run(READ) == "meanwhile"
    check_as_before(cloud, server)
    cloud.images.delete(None, cloud.take(server))
    check_as_before(cloud, server)
