"""A live snapshot is taken on one host, and a server starts from it on another one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from .cloud import HOST, SECOND_HOST, Cloud
from .conftest import Boot, Take, read_ticks, wait_for_tick


@pytest.fixture(scope="module")
def second_host(running_cloud: Cloud, guest: dict[str, Any]) -> Iterator[None]:
    with running_cloud.inside(), running_cloud.second_host():
        yield


@contextlib.contextmanager
def disabled(cloud: Cloud, host: str) -> Iterator[None]:
    """Let the scheduler choose another host."""
    compute = cloud.connect("admin").compute
    (service,) = compute.services(host=host, binary="nova-compute")
    compute.disable_service(service)
    yield
    compute.enable_service(service)


@pytest.mark.usefixtures("second_host", "no_leftovers")
def test_a_server_goes_on_on_the_other_host(cloud: Cloud, demo: Any, boot: Boot, take: Take) -> None:
    with disabled(cloud, SECOND_HOST):
        source = boot("web")
    wait_for_tick(demo, source, agent="yes")
    image_id = take(source)
    with disabled(cloud, HOST):
        clone = boot("clone", image_id=image_id)
    last = read_ticks(demo, source)[-1]
    assert wait_for_tick(demo, clone, after=last.count).word == last.word, "it was booted, not restored"
    assert cloud.why_memory_is_not_shared(clone) is None
    admin = cloud.connect("admin").compute
    hosts = [admin.get_server(server.id).compute_host for server in (source, clone)]
    assert hosts == [HOST, SECOND_HOST]
    assert wait_for_tick(demo, source, after=last.count).word == last.word
