"""Nova's libvirt driver with live snapshots; in every other way it is Nova's.

[DEFAULT]
compute_driver = liveclone.LibvirtDriver
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver as nova_libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging

from liveclone_nova import (
    capture,
    clone,
    conf,
    domains,
    endpoint,
    guest_devices,
    interface,
    recovery,
    state_images,
    states,
    traits,
    versions,
)

LOG = logging.getLogger(__name__)


class LibvirtDriver(interface.LiveSnapshotDriver, nova_libvirt_driver.LibvirtDriver):
    """How guests are captured is in `capture`, how they are restored in `clone`."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        versions.check_nova()
        conf.register()
        super().__init__(virtapi, read_only)
        self._clones: dict[
            str, clone.Clone
        ] = {}  # servers that are being spawned from a live snapshot, by uuid
        endpoint.register(virtapi, self)

    def init_host(self, host: str) -> None:
        super().init_host(host)
        recovery.settle_all(self)

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

    def spawn(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        *args: Any,
        network_info: Any = None,
        **kwargs: Any,
    ) -> None:
        with ExitStack() as opened:
            if clone.is_clone(instance):
                cloning = clone.open_clone(self, context, instance, network_info)
                self._clones[instance.uuid] = opened.enter_context(cloning)
                opened.callback(self._clones.pop, instance.uuid)
            super().spawn(context, instance, *args, network_info=network_info, **kwargs)

    def _get_guest_xml(
        self, context: nova_context.RequestContext, instance: objects.Instance, *args: Any, **kwargs: Any
    ) -> str:
        novas = super()._get_guest_xml(context, instance, *args, **kwargs)
        xml, missing = guest_devices.add(novas, self._host.get_connection())
        if missing:
            LOG.warning("The guest goes without %s", " and ".join(missing), instance=instance)
        return xml

    def _create_guest(
        self,
        context: nova_context.RequestContext,
        xml: str,
        instance: objects.Instance,
        power_on: bool = True,
        pause: bool = False,
        post_xml_callback: Callable[[], None] | None = None,
    ) -> libvirt_guest.Guest:
        opened = self._clones.get(instance.uuid)
        if opened is not None:
            guest = opened.start(xml, pause=pause)
            if post_xml_callback is not None:
                post_xml_callback()  # Nova's record of devices; a config drive has been refused
            return guest
        return super()._create_guest(
            context, xml, instance, power_on=power_on, pause=pause, post_xml_callback=post_xml_callback
        )

    def update_provider_tree(self, provider_tree: Any, nodename: str, allocations: Any = None) -> None:
        super().update_provider_tree(provider_tree, nodename, allocations=allocations)
        found = set() if capture.find_host_obstacles() else traits.of_host(domains.host_of(self))
        ours = traits.find_ours(provider_tree.data(nodename).traits)
        provider_tree.remove_traits(nodename, *(ours - found))
        provider_tree.add_traits(nodename, *found)

    def manage_image_cache(self, context: nova_context.RequestContext, all_instances: Any) -> None:
        super().manage_image_cache(context, all_instances)
        states.age_out(all_instances)
        try:
            state_images.sweep(self._image_api, nova_context.get_nova_service_user_context())
        except Exception:  # no [service_user], or Glance does not answer: the next time
            LOG.warning("State images whose disk images are gone cannot be looked for", exc_info=True)
