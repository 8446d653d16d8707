"""The bridge network: one network namespace, one bridge with the gateway's address, the machines' taps.

    host's own namespace (never touched)   │  /run/netns/liveclone-1a2b3c4d
                                           │
    client ── 127.0.0.1:8080 ── forwarder ─┼─ connects as 10.213.0.1 ── lc0 ─┬─ t...0 ═ QEMU ═ 10.213.0.7
             (host/portproxy)              │                                 ├─ t...0 ═ QEMU ═ 10.213.0.8

Why the bridge is set up as it is:
- STP off and no forward delay: a port forwards from the moment it is up.
- No multicast snooping: a new clone hears its neighbours' IPv6 discovery at once, without a querier.
- A MAC of its own: by default a bridge takes the lowest of its ports' and changes it as they come and go, and
  every guest's ARP entry of the gateway would be wrong.
- No IPv6 on the bridge and the taps: no chatter of the host's into the guests. The guests' own IPv6 passes.
- ARP is asked every 100 ms for 3 s (default: each second, for 3 s), and an announcement is believed even if nobody
  had asked (arp_accept). When the only port goes, the kernel forgets its neighbours; this way a source whose NIC
  was away for 0.3 s is found again within 0.1 s.

Nothing routes out of the namespace: guests reach one another and the gateway's address only. What fills the network
(taps, host/tap.py; forwarders, host/ports.py) is not made here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Conflict, NotFound, Refused
from . import locks, netns, tap

# linux/sockios.h
_GET_FLAGS, _GET_ADDRESS, _GET_NETMASK, _GET_MAC = 0x8913, 0x8915, 0x891B, 0x8927
_UP = 0x1

# Bridge options (if_link.h, IFLA_BR_*) and what they are for: see above. Times are in hundredths of a second.
_BRIDGE_OPTIONS = {"br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}
_SYSCTLS = (
    ("ipv6/conf/default/disable_ipv6", "1"),  # what is made later: the bridge and every tap
    ("ipv6/conf/{bridge}/disable_ipv6", "1"),
    ("ipv4/conf/{bridge}/arp_accept", "1"),
    ("ipv4/neigh/{bridge}/retrans_time_ms", "100"),
    ("ipv4/neigh/{bridge}/mcast_solicit", "30"),
    ("ipv4/neigh/{bridge}/ucast_solicit", "10"),
)


@dataclass(frozen=True)
class NetworkSpec:
    """A bridge network. `gateway` is CIDR; `lock` a file (made if need be) that serialises making and repairing."""

    namespace: str
    lock: Path
    bridge: str = "lc0"
    gateway: str = "10.213.0.1/16"

    @property
    def interface(self) -> ipaddress.IPv4Interface:
        try:
            return ipaddress.IPv4Interface(self.gateway)
        except ValueError as error:
            raise Refused(
                f"{self.gateway!r} is not an IPv4 address with a prefix",
                code="bad-address",
                tried="reading the gateway's address",
                on=self.namespace,
                seen=str(error),
                next_step="write it like 10.213.0.1/16",
            ) from error

    @property
    def mac(self) -> str:
        """The bridge's MAC, always the same for a namespace. Guests' MACs must not begin with 06:6c:63."""
        digest = hashlib.sha256(self.namespace.encode()).digest()
        return f"06:6c:63:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def ensure_network(spec: NetworkSpec, *, deadline_s: float = 10.0) -> None:
    """Make the network, or repair it, or see in 0.2 ms that it is there; any number of processes may ask at once.

    Raises:
        Unsupported: we are not root, or the kernel lacks bridges.
        Conflict: machines are on it with another address range, its name belongs to something else, or another
            process keeps the lock (code "busy"). In all cases no half-made network gets the name.
    """
    if _is_complete(spec):
        return
    with locks.hold(spec.lock, "making the bridge network", deadline_s):
        while not _is_complete(spec):
            if netns.exists(spec.namespace):
                with contextlib.suppress(NotFound):  # removed just now: make it anew
                    netns.hold(spec.namespace, lambda: _set_up(spec))
            else:
                netns.create(spec.namespace, lambda: _set_up(spec))


def remove_network(spec: NetworkSpec, *, force: bool = False) -> bool:
    """Remove the network unless a tap is left in it; False if one is. Absent is no error.

    With `force` its name goes although machines use it: they keep one another's company until they end, and
    their forwarders too.
    """
    return netns.remove(spec.namespace, lambda: not force and bool(_others(spec.bridge)))


def list_taps(spec: NetworkSpec) -> tuple[str, ...]:
    """Return the names of all links of the network but the bridge's own; none when there is no network."""
    try:
        return netns.run_inside(spec.namespace, lambda: _others(spec.bridge))
    except NotFound:
        return ()


def open_tap(spec: NetworkSpec, machine_id: str, nic_index: int) -> int:
    """Return the descriptor of a new tap for a machine's NIC, making or repairing the network if it must.

    The usual case is one call of `tap.open_tap`, 1 ms. The caller owns the descriptor; raises as `ensure_network`
    and `tap.open_tap` do, with no tap left.
    """
    name = tap.tap_name(machine_id, nic_index)
    for _ in range(3):
        try:
            return tap.open_tap(spec.namespace, spec.bridge, name)
        except NotFound:
            ensure_network(spec)
    return tap.open_tap(spec.namespace, spec.bridge, name)


def _others(bridge: str) -> tuple[str, ...]:
    return tuple(sorted(name for _, name in socket.if_nameindex() if name not in ("lo", bridge)))


def _is_complete(spec: NetworkSpec) -> bool:
    """Look, by ioctl alone, whether everything stands. Up is set last of all, so up means that set-up was finished."""
    wanted = spec.interface

    def look() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

            def ask(request: int, link: str) -> bytes:
                return fcntl.ioctl(control, request, struct.pack("16s24x", link.encode()))[16:]

            def is_up(link: str) -> bool:
                flags: int = struct.unpack_from("H", ask(_GET_FLAGS, link))[0]
                return bool(flags & _UP)

            try:
                return (
                    is_up("lo")
                    and is_up(spec.bridge)
                    and ask(_GET_MAC, spec.bridge)[2:8] == bytes.fromhex(spec.mac.replace(":", ""))
                    and ask(_GET_ADDRESS, spec.bridge)[4:8] == wanted.ip.packed
                    and ask(_GET_NETMASK, spec.bridge)[4:8] == wanted.netmask.packed
                )
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
                    return False
                raise

    try:
        return netns.run_inside(spec.namespace, look)
    except NotFound:
        return False
    except OSError as error:
        raise netns.translate(error, "looking at the bridge", spec.namespace) from error


def _set_up(spec: NetworkSpec) -> None:
    """Bring the namespace that the calling thread is in to what `spec` says, from whatever is there."""
    from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # 140 ms: only when there is work

    try:
        with IPRoute() as route:
            _set_up_links(route, spec)
    except NetlinkError as error:
        problem = OSError(error.code, str(error))
        raise netns.translate(problem, f"setting up bridge {spec.bridge}", spec.namespace) from error


def _set_up_links(route: Any, spec: NetworkSpec) -> None:
    interface = spec.interface
    _write_sysctls(spec.bridge)
    route.link("set", index=1, state="up")  # lo is always number 1
    found = route.link_lookup(ifname=spec.bridge)
    if not found:
        route.link("add", ifname=spec.bridge, kind="bridge", address=spec.mac, **_BRIDGE_OPTIONS)
        found = route.link_lookup(ifname=spec.bridge)
    else:
        _check_ours(route, found[0], spec)
        route.link("set", index=found[0], kind="bridge", address=spec.mac, **_BRIDGE_OPTIONS)
    index = found[0]
    _write_sysctls(spec.bridge)
    route.flush_addr(index=index, family=socket.AF_INET)
    route.addr(
        "add",
        index=index,
        family=socket.AF_INET,
        address=str(interface.ip),
        prefixlen=interface.network.prefixlen,
        broadcast=str(interface.network.broadcast_address),
    )
    route.link("set", index=index, state="up")


def _check_ours(route: Any, index: int, spec: NetworkSpec) -> None:
    kind = route.get_links(index)[0].get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    if kind != "bridge":
        raise Conflict(
            f"{spec.bridge} in network namespace {spec.namespace} is not a bridge",
            code="bridge-taken",
            tried="repairing the bridge network",
            on=spec.bridge,
            seen=f"a link of kind {kind}",
            next_step=f"ip -n {spec.namespace} link del {spec.bridge}",
        )
    present = [entry.get_attr("IFA_ADDRESS") for entry in route.get_addr(index=index, family=socket.AF_INET)]
    if _others(spec.bridge) and any(address != str(spec.interface.ip) for address in present):
        raise Conflict(
            "machines are running on the bridge with another address range",
            code="network-differs",
            tried="repairing the bridge network",
            on=spec.namespace,
            seen=", ".join(present),
            next_step="stop those machines first, or keep the address range they have",
        )


def _write_sysctls(bridge: str) -> None:
    """Write what can be written: a kernel without IPv6, or a container with /proc/sys read-only, still works."""
    for name, value in _SYSCTLS:
        with contextlib.suppress(OSError):
            Path("/proc/sys/net", name.format(bridge=bridge)).write_text(value)
