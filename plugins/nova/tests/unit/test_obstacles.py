"""What of an instance bars a live snapshot, each on an instance that has nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from nova import objects
from nova.objects import fields

from liveclone_nova import obstacles

objects.register_all()

INSTANCE, VOLUME, SHARE = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "123")


def make_instance(
    flavor: dict[str, Any] | None = None, specs: dict[str, str] | None = None, **arguments: Any
) -> objects.Instance:
    sizes = {
        "memory_mb": 512,
        "vcpus": 1,
        "root_gb": 1,
        "name": "small",
        "ephemeral_gb": 0,
        "swap": 0,
        **(flavor or {}),
    }
    defaults: dict[str, Any] = {
        "uuid": INSTANCE,
        "flavor": objects.Flavor(extra_specs=specs or {}, **sizes),
        "system_metadata": {},
        "image_ref": None,
        "config_drive": "",
        "launched_at": None,
        "pci_devices": objects.PciDeviceList(),
        "pci_requests": objects.InstancePCIRequests(requests=[]),
    }
    return objects.Instance(**{**defaults, **arguments})


def make_bdm(**arguments: Any) -> objects.BlockDeviceMapping:
    defaults = {
        "source_type": "image",
        "destination_type": "local",
        "volume_id": None,
        "no_device": False,
        "guest_format": None,
    }
    return objects.BlockDeviceMapping(**{**defaults, **arguments})


ROOT = make_bdm(boot_index=0)


def test_an_ordinary_instance_has_none() -> None:
    assert obstacles.find_obstacles(make_instance(), [ROOT], []) == []


@pytest.mark.parametrize(
    ("bdm", "reason"),
    [
        ({"destination_type": "volume", "volume_id": VOLUME}, f"volume {VOLUME} is attached"),
        ({"source_type": "blank", "guest_format": "swap"}, "it has a swap disk"),
        ({"source_type": "blank"}, "it has an ephemeral disk"),
    ],
)
def test_a_block_device_is(bdm: dict[str, Any], reason: str) -> None:
    assert obstacles.find_obstacles(make_instance(), [ROOT, make_bdm(**bdm)], []) == [reason]


def test_a_device_that_was_asked_away_is_not() -> None:
    gone = make_bdm(destination_type="volume", no_device=True)
    assert obstacles.find_obstacles(make_instance(), [ROOT, gone], []) == []


@pytest.mark.parametrize(
    ("flavor", "reason"),
    [({"swap": 64}, "it has a swap disk"), ({"ephemeral_gb": 1}, "it has an ephemeral disk")],
)
def test_a_disk_of_the_flavor_is(flavor: dict[str, Any], reason: str) -> None:
    assert obstacles.find_obstacles(make_instance(flavor=flavor), [ROOT], []) == [reason]


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ({"resources:VGPU": "1"}, "it has a vGPU"),
        ({"resources1:VGPU": "1"}, "it has a vGPU"),
        ({"resources_GPU:VGPU": "1"}, "it has a vGPU"),
        ({"accel:device_profile": "fpga"}, "it has an accelerator"),
        ({"hw:pmem": "small"}, "it has persistent memory of the host"),
        ({"hw:tpm_version": "2.0"}, "it has a vTPM"),
    ],
)
def test_an_extra_spec_is(specs: dict[str, str], reason: str) -> None:
    assert obstacles.find_obstacles(make_instance(specs=specs), [ROOT], []) == [reason]


def test_an_encrypted_memory_is() -> None:
    instance = make_instance(
        specs={"hw:mem_encryption": "True"},
        system_metadata={"image_hw_firmware_type": "uefi", "image_hw_machine_type": "q35"},
    )
    found = obstacles.find_obstacles(instance, [ROOT], [])
    assert found == ["it boots by UEFI", "its memory is encrypted"]


@pytest.mark.parametrize("size", ["resources:VCPU", "resources:CUSTOM_VGPU_LIKE", "hw:cpu_policy"])
def test_another_extra_spec_is_not(size: str) -> None:
    assert obstacles.find_obstacles(make_instance(specs={size: "1"}), [ROOT], []) == []


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"image_hw_firmware_type": "uefi"}, "it boots by UEFI"),
        ({"image_hw_tpm_version": "1.2"}, "it has a vTPM"),
        ({"image_img_config_drive": "mandatory"}, "it has a config drive"),
    ],
)
def test_a_property_of_the_image_is(properties: dict[str, str], reason: str) -> None:
    assert obstacles.find_obstacles(make_instance(system_metadata=properties), [ROOT], []) == [reason]


def test_a_bios_is_not() -> None:
    properties = {"image_hw_firmware_type": fields.FirmwareType.BIOS}
    assert obstacles.find_obstacles(make_instance(system_metadata=properties), [ROOT], []) == []


def test_a_device_of_the_host_is() -> None:
    reason = ["it has a PCI or SR-IOV device of the host"]
    device = objects.PciDeviceList(objects=[objects.PciDevice(address="0000:81:00.0")])
    request = objects.InstancePCIRequests(requests=[objects.InstancePCIRequest(count=1, spec=[])])
    assert obstacles.find_obstacles(make_instance(pci_devices=device), [ROOT], []) == reason
    assert obstacles.find_obstacles(make_instance(pci_requests=request), [ROOT], []) == reason


def test_a_share_is_and_is_named() -> None:
    share = objects.ShareMapping(share_id=SHARE)
    assert obstacles.find_obstacles(make_instance(), [ROOT], [share]) == [f"share {SHARE} is attached"]


def test_all_are_said_at_once() -> None:
    instance = make_instance(flavor={"swap": 64}, config_drive="True", specs={"resources:VGPU": "1"})
    found = obstacles.find_obstacles(instance, [ROOT], [])
    assert found == ["it has a swap disk", "it has a config drive", "it has a vGPU"]
