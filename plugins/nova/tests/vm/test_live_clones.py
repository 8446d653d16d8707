"""A running server is captured, and servers start from its memory, by Nova's own driver on a real libvirt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nova import exception

from liveclone_nova import conf, domains, seal, traits
from liveclone_nova.conf import CONF

from .cloud import Cloud
from .guest import MACS, READ, WRITE

pytestmark = pytest.mark.timeout(580)


@pytest.fixture(scope="module")
def warm(cloud: Cloud, source: Any) -> str:
    """A live snapshot of the source, which has gone on since."""
    image = cloud.take(source)
    cloud.guest(source).run(f"A=later; {WRITE.format('rewritten')}")
    return image


def mac_of(instance: Any) -> str:
    (vif,) = instance.get_network_info()
    return str(vif["address"])


def test_the_source_is_what_it_was(cloud: Cloud, source: Any, warm: str) -> None:
    guest, xml = cloud.guest(source), cloud.domain(source).XMLDesc()
    assert guest.run("echo $A") == "later"
    assert guest.run(MACS) == mac_of(source)
    disk = Path(CONF.instances_path) / source.uuid / "disk"
    assert f"<source file='{disk}'" in xml
    assert sorted(found.name for found in disk.parent.iterdir() if "liveclone" in found.name) == []
    assert not list(conf.folder("captures").iterdir())


def test_both_images_are_there_and_bound_to_each_other(cloud: Cloud, source: Any, warm: str) -> None:
    disk = cloud.images.images[warm]
    state = cloud.images.images[disk["properties"]["live_snapshot_state"]]
    assert (disk["status"], disk["disk_format"], state["status"]) == ("active", "qcow2", "active")
    assert disk["properties"]["trait:CUSTOM_LIVECLONE"] == "required"
    required = {key for key in disk["properties"] if key.startswith("trait:CUSTOM_LIVECLONE_")}
    assert len(required) == 1 and required < {
        f"trait:{trait}" for trait in traits.of_host(domains.host_of(cloud.driver))
    }
    assert disk["min_ram"] == source.flavor.memory_mb
    assert (state["os_hidden"], state["is_public"]) == (True, False)
    assert state["properties"]["live_snapshot_disk"] == warm
    head = (cloud.images.folder / state["id"]).read_bytes()[: seal.HEAD_BYTES]
    described = seal.parse_head(head, conf.seal_keys())
    assert (described.disk_image, described.state_image, described.source) == (warm, state["id"], source.uuid)
    assert described.size_bytes == state["size"]
    assert described.ram_bytes == source.flavor.memory_mb << 20
    assert state["size"] < described.ram_bytes


@pytest.mark.parametrize("way", ["constant", "full"])
def test_a_server_goes_on_where_the_source_was(
    cloud: Cloud, source: Any, warm: str, libvirtd: Any, way: str
) -> None:
    from liveclone.drivers.libvirt import hook_install

    if way == "full":
        hook_install.remove(libvirtd.hooks)
    server = cloud.spawn(warm)
    try:
        guest, domain = cloud.guest(server), cloud.domain(server)
        assert guest.run("echo $A") == "token"
        assert guest.run(READ) == "written"
        assert guest.run(MACS) == mac_of(server) != mac_of(source)
        xml = domain.XMLDesc()
        assert f"<nova:name>{server.display_name}</nova:name>" in xml
        assert source.uuid not in xml
        assert domain.name() == server.name
        assert ("<access mode='private'/>" in xml) == (way == "constant")
        kept = json.loads((Path(CONF.instances_path) / server.uuid / "domain.json").read_text())
        assert bool(kept["why_full"]) == (way == "full")
        assert domain.isPersistent()
        assert server.system_metadata["liveclone_identity"] == "unverified"
        guest.run(f"A=own; {WRITE.format('own')}")
        assert cloud.guest(source).run("echo $A") == "later"
        assert cloud.guest(source).run(READ) == "rewritten"
    finally:
        cloud.destroy(server)
        hook_install.install(libvirtd.hooks)


def test_the_state_is_fetched_once(cloud: Cloud, warm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state_image = cloud.images.images[warm]["properties"]["live_snapshot_state"]
    cloud.destroy(cloud.spawn(warm))
    fetched: list[str] = []
    download = cloud.images.download

    def watch(context: Any, image_id: str, **arguments: Any) -> Any:
        fetched.append(image_id)
        return download(context, image_id, **arguments)

    monkeypatch.setattr(cloud.images, "download", watch)
    cloud.destroy(cloud.spawn(warm))
    assert state_image not in fetched
    assert sorted(found.name for found in (conf.folder("states") / state_image).iterdir()) == [
        "head",
        "memory",
        "state",
    ]


def test_a_server_of_a_server_goes_on_too(cloud: Cloud, warm: str) -> None:
    """A clone's disk and memory are as good a source as any."""
    middle = cloud.spawn(warm)
    cloud.guest(middle).run("A=middle")
    last = cloud.spawn(cloud.take(middle))
    assert cloud.guest(last).run("echo $A") == "middle"
    for server in (middle, last):
        cloud.destroy(server)


def refuse(cloud: Cloud, image: str, words: str, **flavor: Any) -> None:
    """Spawn a server, which has to be refused and to leave nothing."""
    before = {domain.UUIDString() for domain in cloud.driver._host.get_connection().listAllDomains()}
    with pytest.raises(exception.ImageUnacceptable) as error:
        cloud.spawn(image, **flavor)
    assert words in str(error.value)
    assert before == {domain.UUIDString() for domain in cloud.driver._host.get_connection().listAllDomains()}
    assert not [found for found in conf.folder("states").iterdir() if found.suffix == ".part"]


@pytest.mark.parametrize(
    ("flavor", "words"),
    [({"memory_mb": 256}, "MiB of memory"), ({"vcpus": 2}, "processors"), ({"root_gb": 2}, "flavor's 2 GiB")],
)
def test_another_flavor_is_refused(cloud: Cloud, warm: str, flavor: dict[str, int], words: str) -> None:
    refuse(cloud, warm, words, **flavor)


class TestForgeries:
    """Each with a state image of its own, so that what the host has fetched already does not help."""

    @pytest.fixture
    def forged(self, cloud: Cloud, warm: str) -> Any:
        """Return what makes a copy of the disk image and the state image, the state's bytes changed."""
        disk = cloud.images.images[warm]
        state_image = disk["properties"]["live_snapshot_state"]
        data = (cloud.images.folder / state_image).read_bytes()

        def make(change: Any = lambda data: data, image: str = warm) -> str:
            path = cloud.images.folder.parent / "forged"
            path.write_bytes(change(data))
            copied = cloud.images.add(path, disk_format="raw")
            cloud.images.images[image]["properties"]["live_snapshot_state"] = copied
            return image

        yield make
        disk["properties"]["live_snapshot_state"] = state_image

    def test_a_copy_of_a_true_state(self, cloud: Cloud, forged: Any) -> None:
        refuse(cloud, forged(), "copy of another one")

    def test_a_state_that_the_user_sealed(self, cloud: Cloud, forged: Any) -> None:
        def seal_again(data: bytes) -> bytes:
            described = seal.parse_head(data[: seal.HEAD_BYTES], conf.seal_keys())
            return seal.render_head(described, b"another key, of thirty-two bytes") + data[seal.HEAD_BYTES :]

        refuse(cloud, forged(seal_again), "does not have the seal of this cloud")

    def test_a_state_whose_parts_were_changed(self, cloud: Cloud, warm: str) -> None:
        state_image = cloud.images.images[warm]["properties"]["live_snapshot_state"]
        path, cached = cloud.images.folder / state_image, conf.folder("states") / state_image
        data = path.read_bytes()
        if cached.exists():
            for part in ("head", "state", "memory"):
                (cached / part).unlink()
            cached.rmdir()
        try:
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            refuse(cloud, warm, "is not what was captured")
            path.write_bytes(data[:-1])
            refuse(cloud, warm, "ends early")
        finally:
            path.write_bytes(data)

    def test_a_state_that_was_deleted(self, cloud: Cloud, forged: Any) -> None:
        image = forged()
        cloud.images.delete(None, cloud.images.images[image]["properties"]["live_snapshot_state"])
        refuse(cloud, image, "its state is not there")

    def test_the_state_of_another_disk(self, cloud: Cloud, warm: str) -> None:
        properties = cloud.images.images[warm]["properties"]
        other = cloud.images.add(cloud.images.folder / warm, disk_format="qcow2", properties=dict(properties))
        refuse(cloud, other, f"belongs to image {warm}")

    def test_a_disk_that_was_exchanged(self, cloud: Cloud, warm: str) -> None:
        image = cloud.images.images[warm]
        digest, image["os_hash_value"] = image["os_hash_value"], "0" * 128
        try:
            refuse(cloud, warm, "not the one that was captured")
        finally:
            image["os_hash_value"] = digest

    def test_a_path_instead_of_an_id(self, cloud: Cloud, warm: str) -> None:
        properties = cloud.images.images[warm]["properties"]
        kept, properties["live_snapshot_state"] = properties["live_snapshot_state"], "../../etc"
        try:
            refuse(cloud, warm, "is no image's id")
        finally:
            properties["live_snapshot_state"] = kept


def test_an_unverified_server_is_refused_unless_the_operator_allows_it(cloud: Cloud, warm: str) -> None:
    CONF.set_override("unverified_clones", False, group="liveclone")
    try:
        refuse(cloud, warm, "[liveclone]/unverified_clones")
    finally:
        CONF.set_override("unverified_clones", True, group="liveclone")


def test_a_server_that_is_rebuilt_boots(cloud: Cloud, warm: str) -> None:
    """Not its first build: the memory would not go with its disk."""
    instance = cloud.make_instance(warm)
    instance.task_state = "rebuild_spawning"
    instance.vm_state = "active"
    server = cloud.spawn(instance=instance)
    try:
        assert cloud.guest(server).run("echo _$A") == "_"
    finally:
        cloud.destroy(server)


def test_states_and_images_that_nobody_needs_go(cloud: Cloud, source: Any) -> None:
    from liveclone_nova import state_images, states

    state_images.sweep(cloud.images, cloud.context)  # what other tests have left
    image = cloud.take(source)
    state_image = cloud.images.images[image]["properties"]["live_snapshot_state"]
    server = cloud.spawn(image)
    CONF.set_override("remove_unused_original_minimum_age_seconds", -1, group="image_cache")
    try:
        assert state_image not in states.age_out(cloud.instances.values())
        assert state_images.sweep(cloud.images, cloud.context) == []
        cloud.destroy(server)
        assert state_image in states.age_out(cloud.instances.values())
        assert not (conf.folder("states") / state_image).exists()
        cloud.images.delete(None, image)
        assert state_images.sweep(cloud.images, cloud.context) == [state_image]
        assert state_image not in cloud.images.images
    finally:
        CONF.clear_override("remove_unused_original_minimum_age_seconds", group="image_cache")
