"""The boot id, by which programs tell one run of a machine from another (random(4)).

The kernel draws it once and lets nobody write it, so a file of ours is bound over it. The agent's unit is in the mount
namespace of the system, which those that systemd gives its services follow: all of them see it. A later generation is
written into the same file, in one write: nobody sees the kernel's id again, and mounts do not pile up.

NOT HANDLED: an instance of procfs of its own (a container's) shows the kernel's id, the source's. Programs that asked
before keep what they were told. Under SELinux a confined service may be refused our file, which has the label of /run.
"""

from __future__ import annotations

import os

from .. import files
from ..context import Context
from . import Item
from .machine_id import render_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_SHOWN = "/proc/sys/kernel/random/boot_id"
_OWN = "/run/liveclone/boot_id"
_MODE = 0o444


class BootId(Item):
    name = "boot_id"

    def observe(self, ctx: Context) -> Observed:
        return (files.find_bytes(ctx.path(_SHOWN)) or b"").strip() or None, {}

    def reset(self, ctx: Context) -> Details:
        if self.observe(ctx)[0] is None:
            return {}
        shown, own = ctx.path(_SHOWN), ctx.path(_OWN)
        fresh = render_uuid(ctx.kernel.draw(16)) + "\n"
        if os.path.exists(own) and os.path.samefile(own, shown):
            _write_over(own, fresh)
        else:
            os.makedirs(os.path.dirname(own), mode=0o755, exist_ok=True)
            files.replace_file(own, fresh, _MODE)
            ctx.kernel.bind(own, shown)
        return {}

    def warm(self, ctx: Context) -> None:
        ctx.kernel.warm_bind()


def _write_over(path: str, text: str) -> None:
    """Write a text of the same length over the old one, so that no reader finds an empty file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, text.encode(), 0)
    finally:
        os.close(fd)


ITEM = BootId
