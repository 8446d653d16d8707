"""Whether a state may be loaded for a server: it is of the very image, and the server and the host are as the captured ones.

The seal (seal.py) says that this cloud wrote the description. Here it is held against what the server is to be. Nova's own
write to a disk before a first boot (a file system that is made larger, files that are put in) is one of the things that
would not go with the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from liveclone.drivers.libvirt.hardware import family
from liveclone_nova import seal
from liveclone_nova.seal import Description

_GIB = 1024**3
_OF_THE_HOST = re.compile(r"host-passthrough|maximum")


@dataclass(frozen=True)
class Host:
    """What of this host decides: `kind`, `hypervisor` and `cpu` as in a description; `injects` files into disks."""

    kind: str
    hypervisor: str
    cpu: str
    injects: bool


@dataclass(frozen=True)
class Wanted:
    """The server that is to be started: ids of its image and the image's state, what Glance says of it, its flavor."""

    image_id: str
    state_image: str
    image: dict[str, Any]
    memory_mb: int
    vcpus: int
    root_gb: int


def sees_host(description: Description) -> bool:
    """Tell whether the captured guest sees the host's own processor."""
    return _OF_THE_HOST.match(description.cpu) is not None


def find_problems(description: Description, wanted: Wanted, host: Host) -> list[str]:
    """Return all that bars it, a few words each, which the server's user sees."""
    return [
        *_find_others(description, wanted),
        *_find_sizes(description, wanted),
        *_find_hosts(description, host),
    ]


def _find_others(description: Description, wanted: Wanted) -> Iterator[str]:
    if description.state_image != wanted.state_image:
        yield "its state is a copy of another one"
    if description.disk_image != wanted.image_id:
        yield f"its state belongs to image {description.disk_image}"
    digest = wanted.image.get("os_hash_algo"), wanted.image.get("os_hash_value")
    if digest != (seal.DIGEST, description.disk.digest):
        yield "its disk is not the one that was captured"


def _find_sizes(description: Description, wanted: Wanted) -> Iterator[str]:
    if wanted.memory_mb != description.memory_mb:
        yield f"it was captured with {description.memory_mb} MiB of memory, and the flavor has {wanted.memory_mb}"
    if wanted.vcpus != description.vcpus:
        yield f"it was captured with {description.vcpus} processors, and the flavor has {wanted.vcpus}"
    if wanted.root_gb and wanted.root_gb * _GIB > description.disk_bytes:  # a smaller one Nova refuses itself
        yield f"its disk has {description.disk_bytes} bytes, and the flavor's {wanted.root_gb} GiB"


def _find_hosts(description: Description, host: Host) -> Iterator[str]:
    if description.kind != host.kind:
        yield f"it was captured under {description.kind}, and the host has {host.kind}"
    if family(description.hypervisor) != family(host.hypervisor):
        yield f"it was captured by {description.hypervisor}, and the host has {host.hypervisor}"
    if sees_host(description) and description.host_cpu != host.cpu:
        yield f"it was captured on a processor {description.host_cpu}, and the host's is {host.cpu}"
    if host.injects:
        yield "the host puts files into disks ([libvirt]/inject_partition)"
