"""The call `network`: wait for the cards the host has plugged, and give each its address.

On the way of every clone and of every source after its snapshot, so: no process, no polling, the requests for a
card in one send. A source gets the card it had, with its MAC; an address that is there already is left alone, and
nothing is taken away that its open connections stand on. IPv6 is left alone.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading
import time
from functools import partial

from . import files, netlink
from .errors import CallError, log
from .netlink import Link, Route
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ETH_P_ARP = 0x0806
_DEFAULT_WAIT_S = 10.0
_RESTORE_WAIT_S = (
    30.0  # after a reboot the card is there from the start; its driver comes a second or two later
)
_RUNNING_WAIT_S = 2.0  # the kernel looks at most once a second, and at once at the first time
_SECOND_METRIC = 100  # of the second card's default route; the first has 0


class Nic:
    """One card as the host wants it."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.mac = str(args["mac"]).lower()
        self.ip, _, prefix = str(args["address"]).partition("/")
        self.prefix = int(prefix or 32)
        self.gateway = str(args.get("gateway") or "")
        self.dns = str(args.get("dns") or "").replace(",", " ").split()
        self.dynamic = not self.ip  # the guest finds its own
        socket.inet_aton(self.ip or "0.0.0.0")
        if not 0 <= self.prefix <= 32:
            raise ValueError(f"{args['address']!r} is no address")

    @property
    def cidr(self) -> str:
        return f"{self.ip}/{self.prefix}"

    def reaches(self, other: str) -> bool:
        """Tell whether `other` lies in this card's own network."""
        shift = 32 - self.prefix
        return _number(self.ip) >> shift == _number(other) >> shift


class Network:
    """Configures cards of the running kernel; resolv.conf lies under `root`; then sets `settled`."""

    def __init__(self, root: str, settled: threading.Event) -> None:
        self._root = root
        self._settled = settled

    def configure(self, request: Request) -> dict[str, Any]:
        """Wait for each card of `nics` and configure it; return what each has now."""
        try:
            nics = [Nic(args) for args in request.args.get("nics") or []]
            wait_s = float(request.args.get("wait_s") or _DEFAULT_WAIT_S)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CallError("bad-request", f"nics: {error!r}") from error
        with Route() as route:
            with request.step("waiting for " + ", ".join(nic.mac for nic in nics)):
                links = _wait_for_links(
                    route, [nic.mac for nic in nics], min(wait_s, request.remaining_s() * 0.9)
                )
            metric = 0
            for nic in nics:
                if nic.dynamic:
                    _wait_for_address(route, links[nic.mac], float(request.args.get("address_wait_s") or 0))
                    continue
                _configure(route, links[nic.mac], nic, metric)
                request.later.append(partial(_announce, links[nic.mac], nic))
                if nic.gateway:
                    metric += _SECOND_METRIC
            self._write_resolv_conf(_list_servers(nics))
            after = {link.index: link for link in route.links()}
            addresses = route.addresses()
        interfaces = []
        for nic in nics:
            index = links[nic.mac].index
            link = after.get(index, links[nic.mac])  # udev may have renamed it meanwhile
            mine = [address.cidr for address in addresses if address.index == index]
            interfaces.append({"name": link.name, "mac": link.mac, "addresses": mine})
        request.later.insert(0, self._settled.set)
        if not request.args.get("forget"):
            request.later.append(lambda: self._remember(request.args.get("nics") or []))
        return {"interfaces": interfaces}

    def restore(self) -> None:
        """After a reboot of the guest, give its cards the addresses that the host gave them last; it is not asked again.

        A clone that has no card yet waits here in vain for its source's, until `wait_s` is over.
        """
        try:
            nics = json.loads(files.find_text(self._file) or "[]")
            if nics:
                args = {"nics": nics, "wait_s": _RESTORE_WAIT_S}
                request = Request("", "network", args, 2 * _RESTORE_WAIT_S, lambda reply: None)
                self.configure(request)
                for task in request.later:
                    task()
        except (CallError, OSError, ValueError) as error:
            log(f"the network of the last boot was not restored: {error}")

    @property
    def _file(self) -> str:
        return os.path.join(self._root, "var/lib/liveclone/network.json")

    def _find_last_servers(self) -> list[str]:
        try:
            return _list_servers([Nic(nic) for nic in json.loads(files.find_text(self._file) or "[]")])
        except (KeyError, TypeError, ValueError, OSError):
            return []

    def _remember(self, nics: list[Any]) -> None:
        text = json.dumps(nics) + "\n"
        try:
            if files.find_text(self._file) != text:
                os.makedirs(os.path.dirname(self._file), exist_ok=True)
                files.replace_file(self._file, text)
        except OSError as error:
            log(f"{self._file}: {error}")

    def _write_resolv_conf(self, servers: list[str]) -> None:
        """Name these servers; without any, take back what was written for the cards before (a source's, in a clone)."""
        path = os.path.join(self._root, "etc/resolv.conf")
        if os.path.islink(path):  # it leads to systemd-resolved's or resolvconf's own
            return
        text, before = _render_resolv_conf(servers), files.find_text(path)
        if before == text or not (servers or before == _render_resolv_conf(self._find_last_servers())):
            return
        try:
            files.replace_file(path, text)
        except OSError as error:
            log(f"{path} stays as it is: {error}")


def _list_servers(nics: list[Nic]) -> list[str]:
    return list(dict.fromkeys(server for nic in nics for server in nic.dns))


def _render_resolv_conf(servers: list[str]) -> str:
    return "".join(f"nameserver {server}\n" for server in servers)


def _wait_for_links(route: Route, macs: list[str], wait_s: float) -> dict[str, Link]:
    """Return the link of each MAC; raise CallError "no-link" naming those that did not come."""
    end = time.monotonic() + wait_s
    with Route(netlink.RTMGRP_LINK) as news:  # listens before it looks
        found = {link.mac: link for link in route.links()}
        while not set(macs) <= set(found):
            left = end - time.monotonic()
            if left <= 0:
                missing = ", ".join(sorted(set(macs) - set(found)))
                raise CallError("no-link", f"no card with MAC {missing} came within {wait_s:g} s")
            found.update({link.mac: link for link in news.changed_links(left) or route.links()})
    return found


def _configure(route: Route, link: Link, nic: Nic, metric: int) -> None:
    stale = [a for a in route.addresses() if a.index == link.index and a.cidr != nic.cidr]
    # Stale addresses go first: with the first address of a subnet the kernel takes the others of that subnet too, and the
    # wanted one may be among them. Adding it when it is there is EEXIST and changes nothing.
    requests = [netlink.remove_address(address) for address in stale]
    requests += [netlink.set_up(link.index), netlink.add_address(link.index, nic.ip, nic.prefix)]
    if nic.gateway:
        onlink = not nic.reaches(nic.gateway)
        requests.append(netlink.set_default_route(link.index, nic.gateway, onlink, metric))
    results = route.carry_out(requests)[len(stale) :]
    try:
        netlink.raise_for(results[0], f"switching {link.name} on")
        netlink.raise_for(results[1], f"giving {link.name} the address {nic.cidr}", errno.EEXIST)
        if nic.gateway:
            netlink.raise_for(results[2], f"the route through {nic.gateway}")
    except OSError as error:
        raise CallError("network-failed", str(error)) from error


def _wait_for_address(route: Route, link: Link, wait_s: float) -> None:
    """Switch a card on whose address the guest finds by its own means (DHCP), and give it time to; none is no error."""
    end = time.monotonic() + wait_s
    with Route(netlink.RTMGRP_IPV4_IFADDR) as news:  # listens before it looks
        route.carry_out([netlink.set_up(link.index)])
        while not any(address.index == link.index for address in route.addresses()):
            left = end - time.monotonic()
            if left <= 0:
                return
            news.changed_links(left)


def _announce(link: Link, nic: Nic) -> None:
    """Tell neighbours and bridges where this address is now (gratuitous ARP, RFC 5227 section 3).

    The kernel drops what is sent before it has noticed that the card is connected. That is a moment after it was
    switched on, so this waits for it, and is done once the host has its reply.
    """
    end = time.monotonic() + _RUNNING_WAIT_S
    with Route() as route, Route(netlink.RTMGRP_LINK) as news:  # listens before it looks
        while not any(one.running for one in route.links() if one.index == link.index):
            left = end - time.monotonic()
            if left <= 0:
                log(f"{link.name}: not announced: it is not connected")
                return
            news.changed_links(left)
    mac, ip = bytes.fromhex(link.mac.replace(":", "")), socket.inet_aton(nic.ip)
    frame = (
        b"\xff" * 6 + mac + struct.pack("!HHHBBH", _ETH_P_ARP, 1, 0x0800, 6, 4, 1) + mac + ip + bytes(6) + ip
    )
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as packets:
            packets.sendto(frame, (link.name, _ETH_P_ARP))
    except OSError as error:  # neighbours ask by themselves, a little later
        log(f"{link.name}: not announced: {error}")


def _number(ip: str) -> int:
    return int.from_bytes(socket.inet_aton(ip), "big")
