"""What of an instance bars a live snapshot, as far as Nova's records say; the guest itself is looked at on its host.

A clone's memory believes in every device of its source. What is listed here either cannot be there twice (a passed-through
device), has state of its own that no image holds yet (a TPM, firmware variables), or would be the very same thing in both
(a volume, a share). Each can be allowed once it is done properly; until then it is a 409 that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from nova import objects
from nova.objects import fields
from nova.virt import configdrive, hardware

_VGPU = re.compile(r"resources\d*(_\w+)?:VGPU")


def find_obstacles(
    instance: objects.Instance,
    bdms: Iterable[objects.BlockDeviceMapping],
    shares: Iterable[objects.ShareMapping],
) -> list[str]:
    """Return all that bars a live snapshot, a few words each; empty: nothing that is on record.

    Args:
        instance: with flavor, image properties (system_metadata), PCI devices and requests.
        bdms: the instance's block devices.
        shares: the file shares attached to it.
    """
    return [
        *_find_block_devices(bdms),
        *_find_disks_of_the_flavor(instance, bdms),
        *_find_devices(instance),
        *_find_platform(instance),
        *(f"share {share.share_id} is attached" for share in shares),
    ]


def _find_block_devices(bdms: Iterable[objects.BlockDeviceMapping]) -> Iterator[str]:
    for bdm in bdms:
        if bdm.is_volume and not bdm.no_device:
            yield f"volume {bdm.volume_id} is attached"


def _find_disks_of_the_flavor(
    instance: objects.Instance, bdms: Iterable[objects.BlockDeviceMapping]
) -> Iterator[str]:
    blank = [
        bdm for bdm in bdms if bdm.source_type == fields.BlockDeviceSourceType.BLANK and not bdm.is_volume
    ]
    if instance.flavor.swap or any(bdm.guest_format == "swap" for bdm in blank):
        yield "it has a swap disk"
    if instance.flavor.ephemeral_gb or any(bdm.guest_format != "swap" for bdm in blank):
        yield "it has an ephemeral disk"
    if configdrive.required_by(instance):
        yield "it has a config drive"


def _find_devices(instance: objects.Instance) -> Iterator[str]:
    specs = instance.flavor.get("extra_specs") or {}
    if (instance.pci_requests and instance.pci_requests.requests) or instance.pci_devices:
        yield "it has a PCI or SR-IOV device of the host"
    if any(_VGPU.fullmatch(key) for key in specs):
        yield "it has a vGPU"
    if "accel:device_profile" in specs:
        yield "it has an accelerator"
    if "hw:pmem" in specs:
        yield "it has persistent memory of the host"


def _find_platform(instance: objects.Instance) -> Iterator[str]:
    image = instance.image_meta
    if hardware.get_vtpm_constraint(instance.flavor, image):
        yield "it has a vTPM"
    if image.properties.get("hw_firmware_type") == fields.FirmwareType.UEFI:
        yield "it boots by UEFI"
    if hardware.get_mem_encryption_constraint(instance.flavor, image):
        yield "its memory is encrypted"
