"""The kernel's random number generator: two copies of one machine would draw the same bytes.

With a VMGENID device the kernel reseeds itself when a clone starts; without one nobody does. We do not rely on
it: the host sends 64 random bytes for this machine alone, and they are credited, so that the generator
takes a new key at once. (The VMGENID itself could be read through qemu_fw_cfg; that costs a clone under emulation 25 ms
and adds nothing to 512 secret bits.) What is observed is a draw, which differs each time it is asked for: equal draws in
two machines prove shared state, different ones are what the host wants to see.
"""

from __future__ import annotations

import sys
import time

from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_DRAW_BYTES = 32
_SMALLEST_SEED = 32


class Rng(Item):
    name = "rng"
    for_source = True
    order = 0

    def observe(self, ctx: Context) -> Observed:
        return ctx.kernel.draw(_DRAW_BYTES), {}

    def reset(self, ctx: Context) -> Details:
        if len(ctx.seed) < _SMALLEST_SEED:
            raise ValueError(f"the host sent {len(ctx.seed)} bytes of seed, {_SMALLEST_SEED} are needed")
        # Not credited, since none of it is secret; it only keeps two machines apart that were given one seed by mistake.
        public = f"{ctx.generation} {time.perf_counter_ns()}".encode()
        ctx.kernel.add_entropy(ctx.seed, public)
        random = sys.modules.get("random")  # not ours to import; if a library did, its state is shared too
        if random is not None:
            random.seed(ctx.kernel.draw(_DRAW_BYTES))
        return {}


ITEM = Rng
