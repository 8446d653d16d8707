"""The capture of a libvirt guest into Glance: the seam that the next part of the plugin fills.

NOT THERE YET. `capture` is where liveclone.drivers.libvirt and liveclone.formats will take memory, device state and disk
while the guest runs, and where they become a disk image and a sealed, hidden state image bound to it. Until then
`find_obstacles` says so before an image is made, and `capture` raises if it is called all the same. What of a guest
cannot be captured is judged already, by the same code as for domains outside of Nova.
"""

from __future__ import annotations

from collections.abc import Callable

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver as nova_libvirt_driver

from liveclone.formats import domain_obstacles
from liveclone_nova import exceptions

NOT_YET = "this version of liveclone-nova cannot capture a guest of libvirt yet"


def find_obstacles(driver: nova_libvirt_driver.LibvirtDriver, instance: objects.Instance) -> list[str]:
    """Return what of the running guest bars a capture.

    Raises:
        InstanceNotFound: libvirt has no such domain.
    """
    xml = driver._host.get_guest(instance).get_xml_desc()
    found = (obstacle for obstacle in domain_obstacles.find_obstacles(xml) if not obstacle.full_is_possible)
    return [*(f"{obstacle.what}: {obstacle.why}" for obstacle in found), NOT_YET]


def capture(
    driver: nova_libvirt_driver.LibvirtDriver,
    context: nova_context.RequestContext,
    instance: objects.Instance,
    image_id: str,
    update_task_state: Callable[..., None],
) -> None:
    """Capture the running guest into the image; LiveSnapshotDriver.live_snapshot says what holds.

    Raises:
        CaptureNotImplemented: always, so far; nothing was touched.
    """
    raise exceptions.CaptureNotImplemented()
