"""What boots in the cloud: Debian with liveclone's agent, made by liveclone, and a line a second on its console.

It boots in seconds under emulation: its kernel and initramfs are images of their own, its process 1 is guest/init.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveclone.images.build import build_image
from liveclone.images.spec import ImageSpec
from liveclone.model.image import Image
from liveclone.units import GIB

GUEST = Path(__file__).with_name("guest")
DISK_GIB = 2
RAM_MIB = 256
_TICK = re.compile(r"tick count=(\d+) word=(\S+) disk=(\S+) mac=(\S+) host=(\S+) agent=(\S+)\r?\n")


@dataclass(frozen=True)
class Tick:
    """What a guest says once a second."""

    count: int
    word: str  # in its memory alone, another one with each boot
    disk: str  # what it last wrote and read again
    mac: str  # of its network card, or `none`
    host: str
    agent: str  # `yes` from when liveclone's agent has opened its port


def build(cache: Path) -> Image:
    """Return the guest's image, from the cache if it is there."""
    spec = ImageSpec(
        name="nova",
        disk_bytes=DISK_GIB * GIB,
        files=((GUEST / "init", "/opt/init"),),
        script=GUEST / "setup",
    )
    return asyncio.run(build_image(spec, cache / "images", replace=True))


def upload(images: Any, guest: Image) -> str:
    """Put the guest into Glance, for everybody; return the image's id.

    Args:
        images: the SDK's proxy, of an administrator.
    """

    def put(name: str, path: str, kind: str, container: str, **properties: str) -> str:
        image = images.create_image(
            name,
            filename=path,
            disk_format=kind,
            container_format=container,
            visibility="public",
            **properties,
        )
        return str(image.id)

    return put(
        "guest",
        guest.disk,
        "qcow2",
        "bare",
        kernel_id=put("guest-kernel", guest.boot.kernel, "aki", "aki"),
        ramdisk_id=put("guest-initrd", guest.boot.initrd, "ari", "ari"),
        os_command_line=guest.boot.cmdline,
        hw_rng_model="virtio",
    )


def read_ticks(console: str) -> list[Tick]:
    """Return what a guest has said so far, from its console's text."""
    return [Tick(int(count), *others) for count, *others in _TICK.findall(console)]
