"""MACs and addresses. A clone has no card when it is identified: the host plugs one with a MAC of its own later.

So this item is never required here and resets nothing; what it observes is the record at the snapshot. The host
verifies cards and addresses itself, from the reply to `network`.
"""

from __future__ import annotations

import json

from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Observed


class Network(Item):
    name = "network"
    required = False
    resettable = False

    def observe(self, ctx: Context) -> Observed:
        cards = sorted(ctx.kernel.interfaces())
        if not cards:
            return None, {}
        value = json.dumps([(mac, sorted(addresses)) for _, mac, addresses in cards]).encode()
        return value, {name: " ".join([mac, *addresses]) for name, mac, addresses in cards}


ITEM = Network
