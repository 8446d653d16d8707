"""Servers of Nova, and this host, in liveclone's words."""

from __future__ import annotations

from typing import Any

from nova.virt.libvirt import driver as nova_libvirt_driver

from liveclone.drivers.base import Adoption
from liveclone.drivers.libvirt import driver as libvirt_driver
from liveclone.drivers.libvirt import hardware
from liveclone.model.base import now
from liveclone.model.identity import Generation
from liveclone.model.machine import Acceleration, Machine, Memory, MemorySource
from liveclone.model.network import NetworkKind
from liveclone_nova import fitting
from liveclone_nova.conf import CONF

_INJECT_NOTHING = -2  # [libvirt]/inject_partition


def machine_of(uuid: str, found: Adoption) -> Machine:
    """Return a server as liveclone's driver knows machines: one that was there before, and is not ours."""
    return Machine(
        id=uuid,
        name=found.name,
        created_at=now(),
        driver=libvirt_driver.LibvirtDriver.name,
        hardware=found.hardware,
        image="",
        boot=found.boot,
        disk=found.disks[0].path if found.disks else "",
        disk_bytes=found.disks[0].size_bytes if found.disks else 0,
        disks=found.disks,
        memory=Memory(path="", source=MemorySource.ANONYMOUS),
        process=found.process,
        network=NetworkKind.LIBVIRT,
        nics=found.nics,
        generation=Generation(counter=0, uuid=uuid),
        domain=found.uuid,
        adopted=True,
    )


def host_of(driver: nova_libvirt_driver.LibvirtDriver) -> fitting.Host:
    """Return what of this host decides which states it can load."""
    cpu: Any = driver._host.get_capabilities().host.cpu
    kvm = CONF.libvirt.virt_type == "kvm"
    return fitting.Host(
        kind=(Acceleration.KVM if kvm else Acceleration.TCG).value,
        hypervisor=f"libvirt {hardware.versions(driver._host.get_connection())}",
        cpu=str(cpu.model or ""),
        injects=CONF.libvirt.inject_partition != _INJECT_NOTHING,
    )
