"""Addresses and DHCP ids that the guest's own configuration gives to a card: it gives the clone's card the same."""

from __future__ import annotations

import re

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_ID = "an id for the DHCP server"
# Pattern -> expressions for what is given, and what that is.
_GIVEN = {
    "/etc/systemd/network/*.network": ((r"Address *= *(\S+)", "an address"), (r"DUIDRawData *= *(\S+)", _ID)),
    "/etc/systemd/networkd.conf": ((r"DUIDRawData *= *(\S+)", _ID),),
    "/etc/NetworkManager/system-connections/*": (
        (r"address(?:es)?\d* *= *([^\s,;]+)", "an address"),
        (r"dhcp-(?:client-id|duid) *= *([0-9a-fA-F:]{6,})", _ID),
    ),
    "/etc/sysconfig/network-scripts/ifcfg-*": ((r"IPADDR\d*=[\"']?([\d.]+)", "an address"),),
    "/etc/network/interfaces": ((r"address[ \t]+(\S+)", "an address"),),
    "/etc/network/interfaces.d/*": ((r"address[ \t]+(\S+)", "an address"),),
    "/etc/netplan/*.yaml": ((r"(?!.*\bto:).*?\b(\d+\.\d+\.\d+\.\d+/\d+)", "an address"),),
    "/etc/dhcp/dhclient.conf": ((r"send +dhcp-client-identifier +([^;]+)", _ID),),
    "/etc/dhcpcd.conf": ((r"clientid +(\S+)", _ID), (r"static +ip_address=(\S+)", "an address")),
}
# Made for a card with one MAC, which no card of a clone has.
_BOUND = re.compile(r"(?mi)^\s*(mac-address=|HWADDR=|macaddress:|MACAddress\s*=|PermanentMACAddress\s*=)")


class FixedAddresses(Check):
    name = "fixed-addresses"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for pattern, expressions in _GIVEN.items():
            for path in guest.find(pattern):
                text = guest.read(path)
                if _BOUND.search(text):
                    continue
                for expression, what in expressions:
                    for given in re.findall(rf"(?m)^[ \t]*{expression}", text):
                        if not given.startswith(("127.", "::1")):
                            yield finding(
                                path,
                                f"gives a card {what}: {given}",
                                "accept",
                                "a clone's card that this fits is given the same, beside what the host gives it: "
                                "leave both to the agent",
                            )


CHECK = FixedAddresses
