"""Nova's libvirt driver with live snapshots; in every other way it is Nova's.

[DEFAULT]
compute_driver = liveclone.LibvirtDriver
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver as nova_libvirt_driver

from liveclone_nova import capture, endpoint, interface, versions


class LibvirtDriver(interface.LiveSnapshotDriver, nova_libvirt_driver.LibvirtDriver):
    """How guests are captured is in `capture`."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        versions.check_nova()
        super().__init__(virtapi, read_only)
        endpoint.register(virtapi, self)

    def check_can_live_snapshot(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> list[str]:
        return capture.find_obstacles(self, instance)

    def live_snapshot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_id: str,
        update_task_state: Callable[..., None],
    ) -> None:
        capture.capture(self, context, instance, image_id, update_task_state)
