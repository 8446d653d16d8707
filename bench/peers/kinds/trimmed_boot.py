"""The best cold boot that one can get of the same guest: systemd starts nothing but the application and its network.

No agent, no udev, no journal, no ssh; the kernel, the image and the devices are those of the cold boot.
"""

from __future__ import annotations

from pathlib import Path

from ...lab import Lab
from .. import qemu
from .cold_boot import ColdBoot, Image

WORDS = "systemd.unit=trimmed.target trimmed.address={address}"


class TrimmedBoot(ColdBoot):
    name = "trimmed-boot"
    words = "the same guest, booted with nothing but the application (QEMU alone)"
    order = 80

    def make_state(self, lab: Lab, ram_mib: int, folder: Path) -> Image:
        return Trimmed(lab, ram_mib, folder)


class Trimmed(Image):
    """The image, and how it is booted."""

    async def boot(self, drive: Path) -> qemu.Qemu:
        return await self.herd.launch(drive, append=WORDS, bridged=True)


PEER = TrimmedBoot
