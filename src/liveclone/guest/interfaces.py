"""The call `interfaces`: what addresses the guest has, on which cards, as it or others have set them.

Asked before a card is unplugged for a moment whose addresses are not the host's to give: who has set one by hand, or once
when the guest booted, would not set it again.
"""

from __future__ import annotations

import socket
import struct

from . import files
from .netlink import Route
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def list_interfaces(root: str, request: Request) -> dict[str, Any]:
    """Return each card with its IPv4 addresses, the gateway behind it, and the name servers that resolv.conf names."""
    with request.step("listing interfaces"), Route() as route:
        links, addresses = route.links(), route.addresses()
    gateways = find_gateways(files.find_text("/proc/thread-self/net/route") or "")
    found = []
    for link in links:
        if link.mac and not link.loopback:
            mine = [address.cidr for address in addresses if address.index == link.index]
            gateway = gateways.get(link.name, "")
            found.append({"name": link.name, "mac": link.mac, "addresses": mine, "gateway": gateway})
    return {"interfaces": found}


def find_gateways(table: str) -> dict[str, str]:
    """Return the default gateway of each interface, from the text of /proc/net/route (numbers as the processor has them)."""
    found: dict[str, str] = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            gateway = socket.inet_ntoa(struct.pack("=I", int(fields[2], 16)))
            if gateway != "0.0.0.0":
                found.setdefault(fields[0], gateway)
    return found
