"""systemd's random seed (systemd-random-seed.service(8)): credited at the next boot, so two copies of it are one."""

from __future__ import annotations

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_PATH = "/var/lib/systemd/random-seed"
_BYTES = 512  # what systemd writes
_MODE = 0o600


class RandomSeed(Item):
    name = "random_seed"

    def observe(self, ctx: Context) -> Observed:
        return files.find_bytes(ctx.path(_PATH)) or None, {}

    def reset(self, ctx: Context) -> Details:
        if self.observe(ctx)[0] is not None:
            ctx.replace(_PATH, ctx.kernel.draw(_BYTES).decode("utf-8", "surrogateescape"), _MODE)
        return {}


ITEM = RandomSeed
