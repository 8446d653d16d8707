"""Networks, NICs and published ports."""

from __future__ import annotations

import enum

from .base import Value


class NetworkKind(enum.Enum):
    """How a machine reaches others. `bridge` needs root, `user` does not, `none` has no NIC.

    `libvirt`: by the networks that its domain has; addresses are the guest's own affair.
    """

    BRIDGE = "bridge"
    USER = "user"
    NONE = "none"
    LIBVIRT = "libvirt"

    @property
    def keeps_connections(self) -> bool:
        """Whether TCP connections of a source survive its snapshot (docs/hazards.md)."""
        return self in (NetworkKind.BRIDGE, NetworkKind.LIBVIRT)


class Port(Value, frozen=True, kw_only=True):
    """A guest's TCP port published on the host: connections to `host_ip:host_port` reach `guest_port`."""

    host_port: int
    guest_port: int
    host_ip: str = "127.0.0.1"


class Nic(Value, frozen=True, kw_only=True):
    """A network card and what the agent configures on it.

    `address` is CIDR ("10.213.0.7/16"), empty where the guest finds its own; `gateway` and `dns` may be
    empty. `mac` is lower-case hex with colons.
    """

    id: str
    kind: NetworkKind
    mac: str
    address: str
    gateway: str = ""
    dns: str = ""

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]
