"""A running guest of libvirt becomes a disk image and a hidden state image in Glance.

    agent: identity ── cards out ── liveclone: memory, device state, disk at one instant, onto an overlay ── cards in
        │                                                                agent: addresses, fresh entropy (`source`)
        │        liveclone: split, disk copied, overlay committed back
        └─ all of it in instances_path/liveclone/captures/UUID, with a journal: `recovery` reads it if we die
    disk made one file, memory compressed, both described and sealed ── state image up ── disk image up

The disk image comes last: once it is active, all of it is there. How a guest is captured is liveclone's; here is what
Nova and Glance want of it. nova-compute has to be root, and in native threads: see `find_obstacles`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from nova import context as nova_context
from nova import exception, objects
from nova import utils as nova_utils
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.virt.libvirt import driver as nova_libvirt_driver
from oslo_log import log as logging

from liveclone.drivers.base import Adoption, CapturePlan, DiskCapture
from liveclone.drivers.libvirt import driver as libvirt_driver
from liveclone.errors import Interrupted, LivecloneError, NotFound
from liveclone.formats import domain_obstacles, domain_xml
from liveclone.host import files, flatten
from liveclone.model.base import now
from liveclone.model.snapshot import CaptureMethod
from liveclone.store.journal import Journal
from liveclone_nova import conf, domains, properties, recovery, seal, state_file, state_images, traits
from liveclone_nova.exceptions import LiveSnapshotFailed
from liveclone_nova.source import Source, open_source
from liveclone_nova.vifs import Vifs

LOG = logging.getLogger(__name__)

OPERATION = "live_snapshot"
_LAYER = "liveclone-{}.qcow2"
_DEADLINE_S = 3600.0  # until the memory is written; libvirt itself gives in long before


def find_obstacles(driver: nova_libvirt_driver.LibvirtDriver, instance: objects.Instance) -> list[str]:
    """Return what of the running guest, and of this host, bars a capture.

    Raises:
        InstanceNotFound: libvirt has no such domain.
    """
    xml = driver._host.get_guest(instance).get_xml_desc()
    found = (obstacle for obstacle in domain_obstacles.find_obstacles(xml) if not obstacle.full_is_possible)
    reasons = [*(f"{obstacle.what}: {obstacle.why}" for obstacle in found), *find_host_obstacles()]
    written = [disk for disk in domain_xml.parse_domain(xml).disks if disk.needs_own]
    if len(written) != 1:
        reasons.append(f"it has {len(written)} disks, and one is captured")
    return reasons


def find_host_obstacles() -> list[str]:
    """Return what of this nova-compute bars live snapshots, and servers from them."""
    checks = {
        "its host has no [liveclone]/seal_keys": bool(conf.seal_keys()),
        "nova-compute on its host is not root": os.geteuid() == 0,
        "nova-compute on its host runs with eventlet": nova_utils.concurrency_mode_threading(),
    }
    return [reason for reason, holds in checks.items() if not holds]


def capture(
    driver: nova_libvirt_driver.LibvirtDriver,
    context: nova_context.RequestContext,
    instance: objects.Instance,
    image_id: str,
    update_task_state: Callable[..., None],
) -> None:
    """Capture the running guest into the image; LiveSnapshotDriver.live_snapshot says what holds.

    Raises:
        LiveSnapshotFailed, or what Nova and Glance raise: the guest runs as before. No state image is left.
        InstanceNotFound: the guest has ended meanwhile.
    """
    if reasons := find_obstacles(driver, instance):
        raise LiveSnapshotFailed(reason="; ".join(reasons))
    try:
        with ExitStack() as undo:
            _Capture(driver, context, instance, image_id, undo).carry_out(update_task_state)
    except LivecloneError as error:
        LOG.error("Live snapshot failed: %s", error.fields(), instance=instance)
        if isinstance(error, NotFound | Interrupted) and not _runs(driver, instance):
            raise exception.InstanceNotFound(instance_id=instance.uuid) from error
        raise LiveSnapshotFailed(reason=error.message) from error


class _Capture:
    """One capture. `undo` removes, at the end in any case, what is on this host, and on failure what is in Glance."""

    def __init__(
        self,
        driver: nova_libvirt_driver.LibvirtDriver,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_id: str,
        undo: ExitStack,
    ) -> None:
        self.driver, self.context, self.instance, self.image_id = driver, context, instance, image_id
        self.image_api = driver._image_api
        self.vifs = Vifs(driver, context, instance)
        self.folder = conf.make_folder("captures") / instance.uuid
        self.memory, self.device_state = self.folder / "memory", self.folder / "state"
        self.frozen, self.disk = self.folder / "frozen", self.folder / "disk.qcow2"
        self.packed = self.folder / "state.packed"
        self.journal = Journal(self.folder)
        self.is_as_before = True  # the guest: on its disk, with its cards
        self._undo = undo

    def carry_out(self, update_task_state: Callable[..., None]) -> None:
        """Do all of it, in the order of the module."""
        self._begin()
        found, source = asyncio.run(self._take())
        identity = source.describe()
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        with compute_utils.disk_ops_semaphore:
            asyncio.run(flatten.flatten(self.frozen, self.disk, found.disks[0].format))
            self.frozen.unlink()
        update_task_state(
            task_state=task_states.IMAGE_UPLOADING, expected_state=task_states.IMAGE_PENDING_UPLOAD
        )
        self._upload(found, identity, source.problem)

    def _begin(self) -> None:
        recovery.settle(self.driver, self.folder)  # an earlier one may have left the guest on its overlay
        files.make_folder(self.folder)
        self.journal.begin(OPERATION, image=self.image_id)
        self._undo.callback(self._clear)

    def _clear(self) -> None:
        """Remove what is on this host, unless the guest is not as it was: then the journal is needed."""
        if self.is_as_before:
            files.remove_tree(self.folder)

    async def _take(self) -> tuple[Adoption, Source]:
        """Capture the guest into the files of the folder; it runs as before when this returns or raises."""
        hypervisor = libvirt_driver.LibvirtDriver(self.driver._host._uri)
        found = await hypervisor.look(self.folder, self.instance.uuid)
        machine = domains.machine_of(self.instance.uuid, found)
        handle = await hypervisor.open(machine, self.folder)
        try:
            async with open_source(handle, machine, self.image_id) as source:
                plan = self._plan(found, source)
                self.is_as_before = False
                try:
                    await source.prepare()
                    self.journal.note("prepared", nics=source.machine.nics)
                    await handle.capture(plan)
                finally:
                    try:
                        await asyncio.to_thread(self.vifs.put_back)
                        self.is_as_before = not plan.next_disk.exists()
                    finally:
                        await source.go_on()
        finally:
            await handle.close()
        return found, source

    def _plan(self, found: Adoption, source: Source) -> CapturePlan:
        (disk,) = found.disks
        present = Path(disk.path)
        layer = present.with_name(f"{present.name}.{_LAYER.format(self.image_id[:8])}")
        captured = DiskCapture(
            target=disk.target,
            present=present,
            format=disk.format,
            size_bytes=disk.size_bytes,
            frozen=self.frozen,
            layer=layer,
        )
        # What `recovery` needs of it; the rest is noted by the capture itself.
        self.journal.note("planned", disks=[{"present": str(present), "layer": str(layer)}])
        return CapturePlan(
            method=CaptureMethod.STREAM,
            machine=domains.machine_of(self.instance.uuid, found),
            folder=self.folder,
            device_state=self.device_state,
            memory=self.memory,
            frozen_disk=self.frozen,
            next_disk=layer,
            deadline_s=_DEADLINE_S,
            note=self.journal.note,
            before_pause=lambda: asyncio.to_thread(self.vifs.take_out),
            after_pause=lambda: self._put_back(source),
            disks=(captured,),
        )

    async def _put_back(self, source: Source) -> None:
        """Put the cards back as soon as the guest runs again; what fails is tried again at the end, and said then."""
        try:
            await asyncio.to_thread(self.vifs.put_back)
        except Exception:
            LOG.warning("Cards will be put back at the end of the live snapshot", instance=self.instance)
        else:
            await source.reconnect()

    def _upload(self, found: Adoption, identity: seal.Identity | None, no_identity: str) -> None:
        """Bring both images to Glance; on failure the state image goes, and the caller removes the other one."""
        image = self.image_api.get(self.context, self.image_id)
        state_image = state_images.create(self.image_api, self.context, image["name"], self.image_id)
        with ExitStack() as failed:
            failed.callback(state_images.delete, self.image_api, self.context, state_image)
            self.journal.note("uploading", state_image=state_image)
            with compute_utils.disk_ops_semaphore:
                description = self._pack(found, state_image, identity, no_identity)
            state_images.upload(self.image_api, self.context, state_image, {}, self.packed)
            metadata = self.driver._create_snapshot_metadata(
                self.instance.image_meta, self.instance, "qcow2", image["name"]
            )
            metadata["properties"] = {key: value for key, value in metadata["properties"].items() if value}
            metadata["properties"] |= {
                **traits.as_properties(description),
                properties.STATE: state_image,
                properties.IDENTITY: no_identity or properties.VERIFIABLE,
            }
            metadata["min_ram"] = self.instance.flavor.memory_mb
            seen = state_images.upload(self.image_api, self.context, self.image_id, metadata, self.disk)
            if seen.get("os_hash_value") != description.disk.digest:
                raise LiveSnapshotFailed(reason="the disk is not in Glance as it was sent there")
            failed.pop_all()

    def _pack(
        self, found: Adoption, state_image: str, identity: seal.Identity | None, no_identity: str
    ) -> seal.Description:
        disk = state_file.describe(self.disk)
        ram_bytes = self.memory.stat().st_size

        def describe(device_state: seal.Part, memory: seal.Part) -> seal.Description:
            hardware = found.hardware
            return seal.Description(
                disk_image=self.image_id,
                state_image=state_image,
                disk=disk,
                device_state=device_state,
                memory=memory,
                ram_bytes=ram_bytes,
                memory_mb=self.instance.flavor.memory_mb,
                vcpus=self.instance.flavor.vcpus,
                disk_bytes=found.disks[0].size_bytes,
                kind=hardware.acceleration.value,
                hypervisor=hardware.hypervisor,
                machine_type=hardware.machine_type,
                cpu=hardware.cpu,
                host_cpu=domains.host_of(self.driver).cpu,
                source=self.instance.uuid,
                project=str(self.instance.project_id),
                taken_at=now(),
                identity=identity,
                no_identity=no_identity,
            )

        return state_file.write(self.packed, self.device_state, self.memory, conf.seal_keys()[0], describe)


def _runs(driver: nova_libvirt_driver.LibvirtDriver, instance: objects.Instance) -> bool:
    try:
        return bool(driver._host.get_guest(instance).is_active())
    except exception.InstanceNotFound:
        return False
