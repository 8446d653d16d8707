"""The cloud is one: a server gets a host, a network and a guest, and nothing of it is left when it is deleted."""

from __future__ import annotations

from typing import Any

from .cloud import HOST, Cloud, wait_until
from .conftest import Boot, find_processes, wait_for_tick


def test_all_services_are_up(cloud: Cloud) -> None:
    admin = cloud.connect("admin")
    services = {service.binary: service.state for service in admin.compute.services()}
    assert services == {"nova-conductor": "up", "nova-scheduler": "up", "nova-compute": "up"}
    assert len(find_processes(cloud.folder)) > 12  # which the end of the session looks for again


def test_a_server_boots_on_the_plugins_driver_and_is_deleted(cloud: Cloud, demo: Any, boot: Boot) -> None:
    server = boot("web")
    (port,) = demo.network.ports(device_id=server.id)
    assert cloud.list_taps() == [f"tap{port.id[:11]}"]
    assert (port.status, port.binding_host_id) == ("ACTIVE", None)  # where it is, only administrators see
    assert cloud.connect("admin").compute.get_server(server.id).compute_host == HOST
    assert len(cloud.list_domains()) == 1
    assert cloud.list_instance_folders() == [server.id]

    tick = wait_for_tick(demo, server)
    assert tick.disk == f"{tick.word}.{tick.count}"
    assert wait_for_tick(demo, server, after=tick.count).word == tick.word

    demo.compute.delete_server(server)
    wait_until(lambda: not list(demo.compute.servers()), "the server is not deleted")
    assert cloud.list_taps() == []
