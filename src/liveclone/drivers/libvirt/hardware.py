"""What a domain's guest sees, in our words, and which libvirt and QEMU show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...formats.domain_xml import Domain
from ...model.machine import Acceleration, Hardware

if TYPE_CHECKING:
    import libvirt


def of(domain: Domain, versions: str) -> Hardware:
    return Hardware(
        ram_bytes=domain.ram_bytes,
        vcpus=domain.vcpus,
        machine_type=domain.machine_type,
        cpu=domain.cpu,
        acceleration=Acceleration.KVM if domain.kind == "kvm" else Acceleration.TCG,
        hypervisor=f"libvirt {versions}",
        vmgenid=bool(domain.genid),
    )


def versions(connection: libvirt.virConnect) -> str:
    """Return "11.3.0, qemu 10.0.2"."""
    return f"{dotted(connection.getLibVersion())}, qemu {dotted(connection.getVersion())}"


def family(hypervisor: str) -> str:
    """Return "10.0" for "libvirt 11.3.0, qemu 10.0.2": stable releases of one family share their device state."""
    return ".".join(hypervisor.partition(", qemu ")[2].split(".")[:2])


def dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
