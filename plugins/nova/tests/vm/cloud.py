"""One compute host of Nova's libvirt driver, ours, with a libvirt of a test's own below it and nothing of Nova above.

Real: Nova's driver with its image backend, its descriptions of guests, its attaching and detaching of cards; libvirt, QEMU
under emulation, guests. Stand-ins: Glance (glance.py), the database (an instance is saved nowhere, the events of actions are
in EVENTS), and the host's side of a card, which Nova's own code would make in the network namespace that the test is in: it
is a tap in libvirtd's.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import nova.privsep
import pytest
from nova import context, exception, objects, thread_pool_factory
from nova.compute import task_states, vm_states
from nova.conf import neutron
from nova.network import model
from nova.tests.unit import fake_instance
from nova.virt import fake
from nova.virt.libvirt import vif as nova_vif

from liveclone_nova import conf
from liveclone_nova.conf import CONF
from liveclone_nova.libvirt_driver import LibvirtDriver

from .glance import Images
from .guest import CMDLINE, Guest

KEY = "0123456789abcdef0123456789abcdef"
RAM_MIB = 128
EVENTS: dict[str, objects.InstanceActionEvent] = {}  # the latest of each instance


class TapInTheirNamespace(nova_vif.LibvirtGenericVIFDriver):
    """Nova's cards; but their taps are made where libvirtd is."""

    pid = 0

    def plug(self, instance: Any, vif: Any) -> None:
        if not self._ip("link", "show", vif["devname"]):
            assert self._ip("tuntap", "add", "dev", vif["devname"], "mode", "tap")

    def unplug(self, instance: Any, vif: Any) -> None:
        self._ip("link", "del", vif["devname"])

    def _ip(self, *arguments: str) -> bool:
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def take_the_place_of_nova(patch: pytest.MonkeyPatch) -> None:
    """Let nothing ask a database, and Nova do itself what it would have a process of root do."""
    objects.register_all()
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    patch.setattr(objects.Instance, "save", lambda *_, **__: None)
    patch.setattr(
        objects.InstanceActionEvent, "create", lambda event, uuid, _request: EVENTS.update({uuid: event})
    )
    none = objects.BlockDeviceMappingList()
    patch.setattr(objects.BlockDeviceMappingList, "get_by_instance_uuid", lambda *_, **__: none)


class Cloud:
    """A host. `instances` are all that were made; `taken` what `take` saw of task states."""

    def __init__(self, folder: Path, uri: str, libvirtd_pid: int) -> None:
        self.context = context.RequestContext("user", "project", is_admin=True)
        self.instances: dict[str, objects.Instance] = {}
        self.images = Images(folder / "glance")
        self.instances_path = folder / "instances"
        self._configure(uri)
        self.driver = LibvirtDriver(fake.FakeVirtAPI())
        self.driver._image_api = self.images
        self.driver._build_device_metadata = lambda *_: None  # of the database's record of cards
        self.driver.vif_driver = TapInTheirNamespace(self.driver._host)
        self.driver.vif_driver.pid = libvirtd_pid
        self.driver.init_host("compute1")
        self._number, self.image = 0, ""

    def make_disk(self) -> Path:
        """Return an empty disk."""
        disk = self.instances_path.parent / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
        return disk

    def add_image(self, disk: Path, kernel: Path, initrd: Path, cmdline: str = CMDLINE) -> str:
        """Make an image that servers can be made from, and return its id."""
        boot = {"container_format": "bare", "disk_format": "raw"}
        kernel_id, ramdisk_id = (self.images.add(path, **boot) for path in (kernel, initrd))
        properties = {"kernel_id": kernel_id, "ramdisk_id": ramdisk_id, "os_command_line": cmdline}
        return self.images.add(disk, disk_format="qcow2", properties=properties)

    def _configure(self, uri: str) -> None:
        conf.register()
        CONF([], default_config_files=[], default_config_dirs=[])
        neutron.register_dynamic_opts(CONF)
        for path in (self.instances_path, self.instances_path / "locks"):
            path.mkdir(exist_ok=True)
        for name, value in (
            ("instances_path", str(self.instances_path)),
            ("state_path", str(self.instances_path.parent)),
            ("force_raw_images", False),
            ("host", "compute1"),
        ):
            CONF.set_override(name, value)
        options: tuple[tuple[str, str, Any], ...] = (
            ("oslo_concurrency", "lock_path", str(self.instances_path / "locks")),
            ("libvirt", "connection_uri", uri),
            ("libvirt", "virt_type", "qemu"),
            ("libvirt", "images_type", "qcow2"),
            ("libvirt", "snapshots_directory", str(self.instances_path / "snapshots")),
            ("vnc", "enabled", True),
            ("liveclone", "seal_keys", [KEY]),
            ("liveclone", "unverified_clones", True),
        )
        for group, name, value in options:
            CONF.set_override(name, value, group=group)

    def close(self) -> None:
        """End Nova's threads, also the one for events of the connection, for which the process would wait."""
        self.driver._host._conn_event_handler_queue.put(sys.exit)
        self.driver.cleanup_host("compute1")
        thread_pool_factory.reset_all_executors()

    def make_instance(self, image_id: str = "", **flavor: Any) -> objects.Instance:
        """Return an instance that is about to be spawned from the image, `image` without one."""
        self._number += 1
        image_id = image_id or self.image
        image = self.images.get(None, image_id)
        sizes = {"memory_mb": RAM_MIB, "vcpus": 1, "root_gb": 1, "ephemeral_gb": 0, "swap": 0, **flavor}
        number = f"{self._number:012x}"
        instance = fake_instance.fake_instance_obj(
            self.context,
            id=self._number,
            uuid=str(uuid.uuid4()),
            host="compute1",
            node="compute1",
            display_name=f"server-{self._number}",
            hostname=f"server-{self._number}",
            image_ref=image_id,
            kernel_id=image["properties"]["kernel_id"],
            ramdisk_id=image["properties"]["ramdisk_id"],
            root_device_name="/dev/vda",
            vm_state=vm_states.BUILDING,
            task_state=task_states.SPAWNING,
            launched_at=None,
            project_id="project",
            user_id="user",
            config_drive="",
            expected_attrs=[
                "system_metadata",
                "metadata",
                "info_cache",
                "flavor",
                "numa_topology",
                "pci_devices",
            ],
            flavor=objects.Flavor(id=1, flavorid="1", name="small", extra_specs={}, rxtx_factor=1.0, **sizes),
        )
        instance.system_metadata = {
            f"image_{key}": str(value)
            for key, value in {
                **image["properties"],
                "disk_format": "qcow2",
                "container_format": "bare",
            }.items()
        }
        for lazy in ("trusted_certs", "resources", "vcpu_model", "device_metadata", "migration_context"):
            setattr(instance, lazy, None)
        instance.pci_requests = objects.InstancePCIRequests(requests=[], instance_uuid=instance.uuid)
        instance.info_cache = objects.InstanceInfoCache(network_info=self._make_network(number))
        self.instances[instance.uuid] = instance
        return instance

    def _make_network(self, number: str) -> Any:
        subnet = model.Subnet(
            cidr="10.77.0.0/24",
            ips=[model.FixedIP(address=f"10.77.0.{int(number, 16)}")],
            gateway=model.IP("10.77.0.254"),
            dns=[],
            routes=[],
        )
        network = model.Network(
            id=str(uuid.uuid4()), bridge="", label="lab", subnets=[subnet], meta={"mtu": 1400}
        )
        vif = model.VIF(
            id=str(uuid.uuid4()),
            address=f"fa:16:3e:00:00:{int(number, 16):02x}",
            network=network,
            type=model.VIF_TYPE_TAP,
            devname=f"tap{number}",
            details={},
            active=True,
            vnic_type="normal",
        )
        return model.NetworkInfo([vif])

    def spawn(self, image_id: str = "", *, instance: Any = None, **flavor: Any) -> objects.Instance:
        """Do what nova-compute does to build a server; on failure it takes away what there is, as nova-compute does."""
        instance = instance or self.make_instance(image_id, **flavor)
        network = instance.get_network_info()
        devices: dict[str, Any] = {
            "root_device_name": "/dev/vda",
            "image": [],
            "ephemerals": [],
            "swap": None,
            "block_device_mapping": [],
        }
        try:
            self.driver.spawn(
                self.context,
                instance,
                instance.image_meta,
                [],
                None,
                {},
                network_info=network,
                block_device_info=devices,
            )
        except Exception:
            self.driver.destroy(self.context, instance, network, devices)
            raise
        instance.vm_state, instance.task_state = vm_states.ACTIVE, None
        instance.launched_at = datetime.datetime.now(datetime.UTC)
        return instance

    def destroy(self, instance: objects.Instance) -> None:
        self.driver.destroy(self.context, instance, instance.get_network_info())
        del self.instances[instance.uuid]

    def take(self, instance: objects.Instance, image_id: str = "") -> str:
        """Take a live snapshot into a new image, and return its id; on failure the image goes, as the endpoint sees to."""
        properties = {
            key.removeprefix("image_"): value
            for key, value in instance.system_metadata.items()
            if key in ("image_kernel_id", "image_ramdisk_id", "image_os_command_line")
        }
        image_id = image_id or self.images.create(None, {"name": "warm", "properties": properties})["id"]
        instance.task_state = task_states.IMAGE_SNAPSHOT

        def update(task_state: str, expected_state: str = task_states.IMAGE_SNAPSHOT) -> None:
            assert instance.task_state == expected_state
            instance.task_state = task_state

        try:
            self.driver.live_snapshot(self.context, instance, image_id, update)
            assert instance.task_state == task_states.IMAGE_UPLOADING
        except Exception:
            self.images.delete(None, image_id)
            raise
        finally:
            instance.task_state = None
        return image_id

    def domain(self, instance: objects.Instance) -> Any:
        return self.driver._host.get_guest(instance)._domain

    def guest(self, instance: objects.Instance) -> Guest:
        return Guest(self.domain(instance))

    def load(self, _context: Any, instance_uuid: str, **_: Any) -> objects.Instance:
        """Take the place of objects.Instance.get_by_uuid."""
        if instance_uuid not in self.instances:
            raise exception.InstanceNotFound(instance_id=instance_uuid)
        return self.instances[instance_uuid]
