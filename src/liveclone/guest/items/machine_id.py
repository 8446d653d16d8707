"""/etc/machine-id, and D-Bus's own where that is a file of its own (machine-id(5), dbus-uuidgen(1))."""

from __future__ import annotations

import os

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_SYSTEMD = "/etc/machine-id"
_DBUS = "/var/lib/dbus/machine-id"
_MODE = 0o444


class MachineId(Item):
    name = "machine_id"

    def observe(self, ctx: Context) -> Observed:
        text = (files.find_text(ctx.path(_SYSTEMD)) or "").strip()
        if not text or text == "uninitialized":  # made at first boot
            return None, {}
        own = _find_own_dbus(ctx)
        return (text + "\n" + own if own else text).encode(), {}

    def reset(self, ctx: Context) -> Details:
        if self.observe(ctx)[0] is None:
            return {}
        fresh = render_machine_id(ctx.kernel.draw(16)) + "\n"
        # A file below a mount of its own (a read-only root gets one from systemd) is written in place; a mount that is
        # read-only itself fails with EROFS, which the caller reports as `shared`.
        ctx.replace(_SYSTEMD, fresh, _MODE)
        if _find_own_dbus(ctx):
            ctx.replace(_DBUS, fresh, _MODE)
        return {}


def render_machine_id(random: bytes) -> str:
    """Return 16 random bytes as a machine ID: a version 4 UUID in 32 digits, as systemd makes them."""
    digits = bytearray(random)
    digits[6] = (digits[6] & 0x0F) | 0x40
    digits[8] = (digits[8] & 0x3F) | 0x80
    return digits.hex()


def render_uuid(random: bytes) -> str:
    """Return 16 random bytes as a version 4 UUID with its hyphens."""
    digits = render_machine_id(random)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _find_own_dbus(ctx: Context) -> str | None:
    path = ctx.path(_DBUS)
    return None if os.path.islink(path) else files.find_text(path)


ITEM = MachineId
