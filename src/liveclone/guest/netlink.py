"""Links, addresses and routes over a raw rtnetlink socket: no `ip` process, a few system calls.

Layouts: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h (rtnetlink(7)). IPv4 alone, but for
what is leased.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    Self = TypeVar("Self", bound="Netlink")

RTMGRP_LINK, RTMGRP_IPV4_IFADDR = 1, 0x10
IFF_UP = 1
_IFF_LOOPBACK = 8
_IFF_RUNNING = 64
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, _RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, _RTM_GETADDR = 16, 17, 18, 20, 21, 22
RTM_NEWROUTE = 24
_IFLA_ADDRESS, _IFLA_IFNAME = 1, 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_CACHEINFO = 1, 2, 4, 6
_FOR_EVER = 0xFFFFFFFF  # as seconds of life
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST, _RTNH_F_ONLINK = 254, 4, 1, 4
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
NETFILTER = 12  # a protocol, linux/netlink.h; Python's socket does not have it
# IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK; a struct nfgenmsg of any family, no tuple: all (nfnetlink.h).
FORGET_TRACKED = (0x102, 0, bytes(4))
_RECEIVE_BYTES = 64 * 1024  # the kernel fills at most 32 KiB a time


class Link:
    """A network interface, as one RTM_NEWLINK tells it."""

    def __init__(self, body: bytes) -> None:
        _, _, self.index, flags, _ = _LINK.unpack_from(body)
        attributes = dict(_attributes(body, _LINK.size))
        self.up = bool(flags & IFF_UP)
        self.running = bool(flags & _IFF_RUNNING)  # what it is given to send is sent, not dropped
        self.loopback = bool(flags & _IFF_LOOPBACK)
        self.mac = attributes.get(_IFLA_ADDRESS, b"").hex(":")
        self.name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()


class Address:
    """An IPv4 address of an interface, as one RTM_NEWADDR tells it. `body` takes it away again."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        _, prefix, _, _, self.index = _ADDRESS.unpack_from(body)
        attributes = dict(_attributes(body, _ADDRESS.size))
        ip = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or bytes(4)
        self.cidr = f"{socket.inet_ntoa(ip)}/{prefix}"


class Netlink:
    """A netlink socket of one `protocol` (netlink(7)). With `groups`, one that is told of changes."""

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, groups))
        self._sequence = 0

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def carry_out(self, requests: Sequence[tuple[int, int, bytes]]) -> list[int]:
        """Carry out requests (type, flags, body) in order, with one send; return an errno for each, 0 for success."""
        first = self._sequence + 1
        parts = []
        for kind, flags, body in requests:
            self._sequence += 1
            flags |= _NLM_F_REQUEST | _NLM_F_ACK
            parts.append(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + _pad(body))
        self._socket.settimeout(None)
        self._socket.send(b"".join(parts))
        results: dict[int, int] = {}
        while len(results) < len(requests):
            for kind, sequence, body in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if kind == _NLMSG_ERROR:
                    results[sequence] = -struct.unpack_from("=i", body)[0]
        return [results[first + number] for number in range(len(requests))]

    def dump(self, ask: int, expect: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), ask, _NLM_F_REQUEST | _NLM_F_DUMP, self._sequence, 0)
        self._socket.settimeout(None)
        self._socket.send(header + body)
        while True:
            for kind, sequence, answer in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise_for(-struct.unpack_from("=i", answer)[0], "listing")
                if kind == expect:
                    yield answer


class Route(Netlink):
    """An rtnetlink socket."""

    def __init__(self, groups: int = 0) -> None:
        super().__init__(socket.NETLINK_ROUTE, groups)

    def links(self) -> list[Link]:
        """Return all interfaces."""
        return [Link(body) for body in self.dump(_RTM_GETLINK, RTM_NEWLINK, _LINK.pack(0, 0, 0, 0, 0))]

    def addresses(self) -> list[Address]:
        """Return all IPv4 addresses."""
        body = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
        return [Address(body) for body in self.dump(_RTM_GETADDR, RTM_NEWADDR, body)]

    def remove_leased(self) -> int:
        """Remove all addresses, IPv6 ones too, that were given for a time; return how many."""
        given = self.dump(_RTM_GETADDR, RTM_NEWADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        requests = [(RTM_DELADDR, 0, body) for body in given if _is_leased(body)]
        for number in self.carry_out(requests) if requests else ():
            # It has just expired, or went with another one of its subnet.
            raise_for(number, "removing a leased address", errno.EADDRNOTAVAIL)
        return len(requests)

    def changed_links(self, timeout_s: float) -> list[Link]:
        """Wait at most `timeout_s` for news of interfaces; return those that came or changed.

        An empty list means: time is up, or news was lost. Ask links() then.
        """
        self._socket.settimeout(max(0.001, timeout_s))
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError:  # timeout; or ENOBUFS: more news than the socket holds
            return []
        return [Link(body) for kind, _, body in _messages(data) if kind == RTM_NEWLINK]


def _is_leased(body: bytes) -> bool:
    _, valid_s = struct.unpack_from(
        "=II", dict(_attributes(body, _ADDRESS.size)).get(_IFA_CACHEINFO, b"\xff" * 8)
    )
    return bool(valid_s != _FOR_EVER)


def set_up(index: int) -> tuple[int, int, bytes]:
    """Return the request that switches an interface on."""
    return RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP)


def add_address(index: int, ip: str, prefix: int) -> tuple[int, int, bytes]:
    """Return the request that gives an interface an address (EEXIST when it has it)."""
    raw = socket.inet_aton(ip)
    body = (
        _ADDRESS.pack(socket.AF_INET, prefix, 0, 0, index)
        + _attribute(_IFA_LOCAL, raw)
        + _attribute(_IFA_ADDRESS, raw)
    )
    if prefix < 31:
        last = int.from_bytes(raw, "big") | ((1 << (32 - prefix)) - 1)
        body += _attribute(_IFA_BROADCAST, last.to_bytes(4, "big"))
    return RTM_NEWADDR, _NLM_F_CREATE, body


def remove_address(address: Address) -> tuple[int, int, bytes]:
    """Return the request that takes an address from its interface."""
    return RTM_DELADDR, 0, address.body


def set_default_route(index: int, gateway: str, onlink: bool, metric: int) -> tuple[int, int, bytes]:
    """Return the request that makes `gateway` the default route of this metric, whatever it was before."""
    flags = _RTNH_F_ONLINK if onlink else 0
    body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, flags)
    body += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) + _attribute(
        _RTA_OIF, struct.pack("=I", index)
    )
    if metric:
        body += _attribute(_RTA_PRIORITY, struct.pack("=I", metric))
    return RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, body


def raise_for(number: int, what: str, *accepted: int) -> None:
    """Raise OSError for errno `number` unless it is 0 or accepted."""
    if number and number not in accepted:
        raise OSError(number, f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + _pad(data)


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
