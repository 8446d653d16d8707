"""What DHCP clients keep on disk: leases, which a clone would ask for again, and DUIDs, by which a server knows a machine.

    removed    leases, and with them the DUIDs that dhclient and dhcp6c keep (made anew of the time and the new MAC)
    renewed    dhcpcd's DUID: without one it takes the DMI UUID, which a clone shares with its source (RFC 6355)
    follows    systemd-networkd's and NetworkManager's are derived from the machine-id

A server's own leases (dhcpd.leases) are its data and stay. What running clients hold in memory is the matter of
network_programs.

NOT HANDLED: ids that a configuration gives (DUIDRawData=, DUIDType=uuid, dhcp-client-id=, send dhcp-client-identifier). They
are somebody's choice, and stay; the scan's check fixed-addresses tells of them.
"""

from __future__ import annotations

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

# Folder, how names begin, how they end.
_LEASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("/var/lib/dhcp", "dhclient", ("",)),
    ("/var/lib/dhclient", "dhclient", ("",)),
    ("/var/lib/dhcpcd", "", (".lease", ".lease6")),
    ("/var/lib/dhcpv6", "dhcp6c_duid", ("",)),
    # The last two: when each connection was used last, and the radio networks it was seen in.
    ("/var/lib/NetworkManager", "", (".lease", "timestamps", "seen-bssids")),
    ("/run/systemd/netif/leases", "", ("",)),
)
_DUIDS = ("/var/lib/dhcpcd/duid", "/etc/dhcpcd.duid")
_DUID_UUID = b"\0\4"  # RFC 6355


class Dhcp(Item):
    name = "dhcp"
    only_renews = True

    def observe(self, ctx: Context) -> Observed:
        duids = [text for _, text in _find_duids(ctx)]
        if not duids and not _find_leases(ctx):
            return None, {}
        return "\n".join(duids).encode(), {}

    def reset(self, ctx: Context) -> Details:
        leases = _find_leases(ctx)
        for name in leases:
            ctx.remove(name)
        duids = _find_duids(ctx)
        for name, _ in duids:
            ctx.rewrite(name, (_DUID_UUID + ctx.kernel.draw(16)).hex(":") + "\n")
        return {"removed": str(len(leases))} if leases else {}


def _find_leases(ctx: Context) -> list[str]:
    return [
        f"{folder}/{name}"
        for folder, start, ends in _LEASES
        for name in ctx.names(folder)
        if name.startswith(start) and name.endswith(ends)
    ]


def _find_duids(ctx: Context) -> list[tuple[str, str]]:
    found = [(name, files.find_text(ctx.path(name))) for name in _DUIDS]
    return [(name, text.strip()) for name, text in found if text]


ITEM = Dhcp
