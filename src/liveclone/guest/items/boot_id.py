"""The boot id, by which programs tell one run of a machine from another (random(4)).

The kernel draws it once and lets nobody write it, so a file of ours is bound over it: by the agent's unit, with the same
id, before there are services that have a procfs of their own (ProtectProc=; systemd takes along what is mounted then), and
by the agent where that was not to be. Mount namespaces of services follow the system's, in which the agent is. A clone's id
is written into that file, in one write: nobody sees the kernel's id again, mounts do not pile up, and a clone does not wait
for mount(2) (20 ms under emulation).

NOT HANDLED: an instance of procfs that somebody else mounts (a container's, or a service's that was there before the agent
was installed) shows the kernel's id, the source's. Programs that asked before keep what they
were told. Under SELinux a confined service may be refused our file: it has /run's label.
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
        fresh = render_uuid(ctx.kernel.draw(16)) + "\n"
        if _is_bound(ctx):
            _write_over(ctx.path(_OWN), fresh)
        else:
            _bind(ctx, fresh)
        return {}

    def warm(self, ctx: Context) -> None:
        text = files.find_text(ctx.path(_SHOWN))
        if text is not None and not _is_bound(ctx):
            _bind(ctx, text)


def _is_bound(ctx: Context) -> bool:
    shown, own = ctx.path(_SHOWN), ctx.path(_OWN)
    return os.path.exists(own) and os.path.samefile(own, shown)


def _bind(ctx: Context, text: str) -> None:
    own = ctx.path(_OWN)
    os.makedirs(os.path.dirname(own), mode=0o755, exist_ok=True)
    files.replace_file(own, text, _MODE)
    ctx.kernel.bind(own, ctx.path(_SHOWN))


def _write_over(path: str, text: str) -> None:
    """Write a text of the same length over the old one, so that no reader finds an empty file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, text.encode(), 0)
    finally:
        os.close(fd)


ITEM = BootId
