"""An image of a hibernated system that a swap area still holds: a clone that boots must never wake up as that system.

There is one when a machine was hibernated and then booted without resuming (`noresume`). Where the kernel is told of a
device to resume from, the area's first page says whether it holds an image; the clone gets the signature of a plain swap
area back, as the kernel does when it has read an image. The source keeps its own.

NOT HANDLED: an image on a device that only the next boot's command line names; a place that firmware remembers (systemd's
HibernateLocation).
"""

from __future__ import annotations

import os

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_PAGE = os.sysconf("SC_PAGE_SIZE")
_IMAGE = b"S1SUSPEND\0"
_PLAIN = (b"SWAPSPACE2", b"SWAP-SPACE")
# The end of struct swsusp_header, kernel/power/swap.c: the signature that there was, and the present one, 10 bytes each.
_SIGNATURES = 20


class Hibernation(Item):
    name = "hibernation"
    configured = True

    def observe(self, ctx: Context) -> Observed:
        return (None if _find_area(ctx) is None else b""), {}

    def reset(self, ctx: Context) -> Details:
        area = _find_area(ctx)
        if area is None:
            return {}
        path, offset = area
        end = offset + _PAGE
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            signatures = os.pread(fd, _SIGNATURES, end - _SIGNATURES)
            before, present = signatures[:10], signatures[10:]
            if present != _IMAGE:
                return {"image": "none"}
            if before not in _PLAIN:
                raise ValueError(f"{path} holds an image, and no swap area before it")
            os.pwrite(fd, before, end - len(before))
            os.fsync(fd)
        finally:
            os.close(fd)
        return {"image": "will not be resumed"}


def _find_area(ctx: Context) -> tuple[str, int] | None:
    """Return the device that the kernel would resume from, and where on it the first page is; None for none."""
    device = (files.find_text(ctx.path("/sys/power/resume")) or "0:0").strip()
    if device == "0:0":
        return None
    pages = files.find_text(ctx.path("/sys/power/resume_offset")) or "0"
    return ctx.path(f"/dev/block/{device}"), int(pages) * _PAGE


ITEM = Hibernation
