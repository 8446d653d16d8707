"""The wall clock: a clone wakes up at the instant of its snapshot, a source loses the length of its pause.

The host sends its own time; what has passed since the request was read is added.
"""

from __future__ import annotations

import time

from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed


class Clock(Item):
    name = "clock"
    for_source = True
    configured = True

    def observe(self, ctx: Context) -> Observed:
        # The time tells the host whether it was set.
        return b"", {"realtime_ns": str(ctx.kernel.realtime_ns())}

    def reset(self, ctx: Context) -> Details:
        if ctx.wall_clock_ns <= 0:
            raise ValueError("the host sent no time")
        now_ns = ctx.wall_clock_ns + time.monotonic_ns() - ctx.read_at_ns
        offset_ns = now_ns - ctx.kernel.realtime_ns()
        ctx.kernel.set_realtime_ns(now_ns)
        return {"offset_ms": f"{offset_ns / 1e6:.3f}"}


ITEM = Clock
