"""Traits by which the scheduler tries only hosts that can load a state. What they say the host judges too (fitting.py).

    CUSTOM_LIVECLONE              restores; no other host boots from the disk what should be restored
    CUSTOM_LIVECLONE_TCG_10_0     under emulation (KVM: under KVM), with a QEMU of this family, which has its machine types
    CUSTOM_LIVECLONE_CPU_EPYC     with this processor; wanted where the guest sees the host's own

A host reports its own three; an image requires the first two or all. All that begin with CUSTOM_LIVECLONE are ours: what a
host had before it was upgraded is taken back. A server needs them for its first build alone, after which it boots from its
disk, so neither it nor images made of it keep those of one host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from liveclone.drivers.libvirt.hardware import family
from liveclone_nova import fitting, properties
from liveclone_nova.seal import Description

_KEPT = "image_trait:"  # of an image's required traits, in a server's system metadata


def of_host(host: fitting.Host) -> set[str]:
    """Return the traits of a host that restores."""
    return {properties.TRAIT, _of_hypervisor(host.kind, host.hypervisor), _name("CPU", host.cpu)}


def of_state(description: Description) -> set[str]:
    """Return the traits that a host needs to load a state."""
    wanted = {properties.TRAIT, _of_hypervisor(description.kind, description.hypervisor)}
    if fitting.sees_host(description):
        wanted.add(_name("CPU", description.host_cpu))
    return wanted


def as_properties(description: Description) -> dict[str, str]:
    """Return the properties of an image that requires them."""
    return {f"trait:{trait}": "required" for trait in of_state(description)}


def find_ours(traits: Iterable[str]) -> set[str]:
    """Return those that this plugin has given to a host."""
    return {
        trait for trait in traits if trait == properties.TRAIT or trait.startswith(f"{properties.TRAIT}_")
    }


def forget(system_metadata: dict[str, str]) -> None:
    """Take out of a server that has been restored what it required of its first host."""
    for key in [key for key in system_metadata if key.startswith(f"{_KEPT}{properties.TRAIT}_")]:
        del system_metadata[key]


def _of_hypervisor(kind: str, hypervisor: str) -> str:
    return _name(kind, family(hypervisor))


def _name(*words: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", "_".join((properties.TRAIT, *words)).upper())
