"""Connections that the kernel's firewall follows (conntrack): the source's, which a clone's packets must not be taken for.

All entries are dropped. What goes on inside the machine is taken up again with its next packet, as after `conntrack -F`;
only what is translated on the way (a container's published port) has to be opened anew.

The neighbour table needs no item: its entries go with the card (docs/hazards.md).
"""

from __future__ import annotations

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


class Conntrack(Item):
    name = "conntrack"
    only_renews = True
    required = False  # an entry is nobody's identity, and a kernel may come without nf_conntrack_netlink
    configured = True

    def observe(self, ctx: Context) -> Observed:
        return (None if files.find_text(ctx.path(_COUNT)) is None else b""), {}

    def reset(self, ctx: Context) -> Details:
        count = int(files.find_text(ctx.path(_COUNT)) or "0")
        if not count:  # asking for nothing might load a module
            return {}
        ctx.kernel.forget_tracked()
        return {"dropped": str(count)}


ITEM = Conntrack
