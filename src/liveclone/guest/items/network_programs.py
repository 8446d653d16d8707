"""Programs that hold the network's old identity in memory: leases, DUIDs, the key of stable addresses, ids of connections.

They have read these once, and the machine-id too (systemd-networkd and NetworkManager derive their DUIDs from it), so files
that are new do not reach them. They are ended at once, before the clone gets a card; systemd starts those anew that are
services (Restart=on-failure). A clone has no card yet, so nothing is lost with them.

What they had been given for a time, cards inside the machine (bridges, bonds) would still have: these addresses go, too.
Whoever starts anew asks for one as the clone; where nobody does (ifupdown's dhclient), the card has none, rather than the
source's. NOT HANDLED: a stable IPv6 address that is given for ever (link-local, NetworkManager's) on such a card.
"""

from __future__ import annotations

import signal

from ..context import Context
from ..programs import find_others, signal_by_name
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

# As /proc/PID/comm has them: 15 characters.
_NAMES = ("NetworkManager", "systemd-network", "dhclient", "dhcpcd", "dhcp6c")


class NetworkPrograms(Item):
    name = "network_programs"
    order = 30  # the files that they read at their start are new
    configured = True

    def __init__(self) -> None:
        self._others: set[int] = set()  # processes that were something else before the snapshot

    def observe(self, ctx: Context) -> Observed:
        return b"", {}

    def reset(self, ctx: Context) -> Details:
        ended = signal_by_name(ctx.root, _NAMES, signal.SIGKILL, self._others)
        leased = ctx.kernel.remove_leased()
        return {
            **({"ended": " ".join(ended)} if ended else {}),
            **({"leased": str(leased)} if leased else {}),
        }

    def warm(self, ctx: Context) -> None:
        self._others = find_others(ctx.root, _NAMES)


ITEM = NetworkPrograms
