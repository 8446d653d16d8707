"""After nova-compute died in the middle of something: the guest is put back on its disk and its cards, the rest goes.

    captures/UUID      the journal says how far the capture was: libvirt's job is ended, the overlay written back into the
                       disk, the cards put back, the guest's agent told, the state image deleted. The disk image
                       stays, without data, as Nova's do
    states/ID.part     a state that was being fetched
    states/ID/*.save   what libvirt was given to start a server from; the server, which Nova sets to ERROR, has no card

What cannot be settled now (a full disk, a database that does not answer) is tried again at the next start, and before the
next live snapshot of that server; its journal stays until then.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nova import context as nova_context
from nova import exception, objects
from nova.virt.libvirt import driver as nova_libvirt_driver
from oslo_log import log as logging

from liveclone.drivers.libvirt import driver as libvirt_driver
from liveclone.errors import LivecloneError, NotFound
from liveclone.host import files
from liveclone.model import base
from liveclone.model.network import Nic
from liveclone.store.journal import Entry, Journal
from liveclone_nova import conf, domains, state_images
from liveclone_nova.exceptions import LiveSnapshotFailed
from liveclone_nova.source import open_source
from liveclone_nova.vifs import Vifs

LOG = logging.getLogger(__name__)


def settle_all(driver: nova_libvirt_driver.LibvirtDriver) -> None:
    """Settle whatever was cut short on this host; what fails is logged and left for later."""
    for folder in _list(conf.folder("captures")):
        try:
            settle(driver, folder)
        except Exception:  # nova-compute has other guests to look after
            LOG.exception("The live snapshot of %s that was cut short cannot be settled", folder.name)
    for folder in _list(conf.folder("states")):
        if folder.suffix == ".part":
            files.remove_tree(folder)
        for save in folder.glob("*.save"):
            save.unlink(missing_ok=True)


def settle(driver: nova_libvirt_driver.LibvirtDriver, folder: Path) -> None:
    """Settle the capture that this folder is of, if there is one: the guest is as before, and the folder is gone.

    Raises:
        LiveSnapshotFailed, and what Nova raises: it is not; the folder is still there.
    """
    entry = Journal(folder).read()
    if entry is not None:
        LOG.warning("Settling a live snapshot of %s that was cut short at %s", folder.name, entry.step)
        try:
            asyncio.run(_put_back(driver, folder, entry))
        except LivecloneError as error:
            LOG.error("Its guest is not as it was: %s", error.fields())
            raise LiveSnapshotFailed(reason=error.message) from error
        _put_back_cards(driver, folder.name)
        asyncio.run(_renew(driver, folder, entry))
        _delete_state_image(driver, entry)
    files.remove_tree(folder)


async def _put_back(driver: nova_libvirt_driver.LibvirtDriver, folder: Path, entry: Entry) -> None:
    """Put the guest back on the disk that it had, whether it runs or has ended."""
    hypervisor = libvirt_driver.LibvirtDriver(driver._host._uri)
    try:
        found = await hypervisor.look(folder, folder.name)
        machine = domains.machine_of(folder.name, found)
        recovered = await hypervisor.recover(machine, folder, entry.facts)
    except (
        NotFound
    ):  # it has ended, and starts from its disk; or it is no domain any more, and there is nothing to do
        return
    if recovered.on_next_disk:
        raise LiveSnapshotFailed(
            reason=f"{found.name} is still on an overlay: is its disk's file system full?"
        )


async def _renew(driver: nova_libvirt_driver.LibvirtDriver, folder: Path, entry: Entry) -> None:
    """Let a guest that an agent had prepared go on; one that does not answer is left alone."""
    hypervisor = libvirt_driver.LibvirtDriver(driver._host._uri)
    nics = base.convert(entry.facts.get("nics", ()), tuple[Nic, ...], "the journal")
    try:
        machine = domains.machine_of(folder.name, await hypervisor.look(folder, folder.name))
        handle = await hypervisor.open(machine, folder)
        try:
            async with open_source(handle, machine, str(entry.facts.get("image", ""))) as source:
                await source.go_on_after_death(nics)
        finally:
            await handle.close()
    except NotFound:  # it has ended
        return
    except LivecloneError as error:
        LOG.warning("The guest of %s was not renewed: %s", folder.name, error.fields())


def _put_back_cards(driver: nova_libvirt_driver.LibvirtDriver, uuid: str) -> None:
    context = nova_context.get_admin_context()
    try:
        instance = objects.Instance.get_by_uuid(
            context, uuid, expected_attrs=["info_cache", "flavor", "system_metadata"]
        )
        Vifs(driver, context, instance).put_back_all()
    except exception.InstanceNotFound:
        LOG.info("%s was deleted meanwhile", uuid)


def _delete_state_image(driver: nova_libvirt_driver.LibvirtDriver, entry: Entry) -> None:
    state_image: Any = entry.facts.get("state_image")
    if state_image:
        try:
            state_images.delete(driver._image_api, nova_context.get_nova_service_user_context(), state_image)
        except Exception:  # no [service_user]: then nobody can but its owner
            LOG.warning("State image %s is left over", state_image, exc_info=True)


def _list(folder: Path) -> list[Path]:
    return sorted(found for found in folder.iterdir() if found.is_dir()) if folder.is_dir() else []
