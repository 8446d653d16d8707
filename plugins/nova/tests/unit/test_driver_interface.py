"""How a virt driver takes part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nova.compute import manager as compute_manager
from nova.virt import driver as virt_driver

from liveclone_nova import endpoint, interface


class AnotherDriver(interface.LiveSnapshotDriver, virt_driver.ComputeDriver):
    """Of another hypervisor, as docs/nova shows it."""

    def __init__(self, virtapi: Any) -> None:
        super().__init__(virtapi)
        endpoint.register(virtapi, self)


def test_its_endpoint_joins_those_of_the_manager() -> None:
    manager = SimpleNamespace(additional_endpoints=[], reportclient=None)
    AnotherDriver(compute_manager.ComputeVirtAPI(manager))
    (ours,) = manager.additional_endpoints
    assert (ours.target.namespace, ours.target.version) == ("live_snapshot", "1.0")


def test_a_tool_that_loads_a_driver_without_a_manager_is_left_alone() -> None:
    AnotherDriver(object())


def test_what_a_driver_does_not_write_is_not_implemented() -> None:
    driver = AnotherDriver(object())
    with pytest.raises(NotImplementedError):
        driver.check_can_live_snapshot(None, None)
    with pytest.raises(NotImplementedError):
        driver.live_snapshot(None, None, "image", lambda **_: None)
