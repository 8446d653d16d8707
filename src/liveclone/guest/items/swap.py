"""Swap areas: their UUIDs and labels are the source's, and are meant to be: fstab and the kernel's command line name them.

An area lies on the clone's own copy of the disk, so the same UUID in two machines harms neither; a disk that two machines
have at once would be damaged anyway. What an area holds is part of the snapshot, as memory is.
"""

from __future__ import annotations

import os

from .. import files
from ..context import Context
from . import Fixed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Observed

_UUID_TO_LABEL = (1036, 32)  # union swap_header of linux/swap.h: 16 bytes of UUID, 16 of label


class Swap(Fixed):
    name = "swap"

    def observe(self, ctx: Context) -> Observed:
        lines = (files.find_text(ctx.path("/proc/swaps")) or "").splitlines()[1:]
        areas = [line.split()[0] for line in lines]
        if not areas:
            return None, {}
        return b"\n".join(_read_names(ctx.path(area)) for area in areas), {"areas": " ".join(areas)}


def _read_names(area: str) -> bytes:
    offset, count = _UUID_TO_LABEL
    fd = os.open(area, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)


ITEM = Swap
