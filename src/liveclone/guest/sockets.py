"""Sockets of all programs, listed and ended from outside (sock_diag(7)); no `ss` process.

Layouts: linux/sock_diag.h, linux/inet_diag.h. Ending one needs a kernel with INET_DIAG_DESTROY; its program then sees
ECONNABORTED, as if the other side had gone.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence

from .netlink import Netlink

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_LISTEN, _TIME_WAIT, _CLOSE = 10, 6, 7  # states of TCP, tcp_states.h
_ASK = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states; then the id
_ANSWER = struct.Struct("=BBBB")  # family, state, timer, retransmissions; then the id
_ID_BYTES = 48  # ports, addresses, interface, cookie
_PORTS = struct.Struct(">HH")


class Socket:
    """One socket, as one inet_diag_msg tells it."""

    def __init__(self, protocol: int, body: bytes) -> None:
        self.protocol = protocol
        self.family = _ANSWER.unpack_from(body)[0]
        self.id = body[_ANSWER.size : _ANSWER.size + _ID_BYTES]
        self.local_port, self.remote_port = _PORTS.unpack_from(self.id)
        length = 4 if self.family == socket.AF_INET else 16
        self.local, self.remote = self.id[4 : 4 + length], self.id[20 : 20 + length]

    @property
    def is_inside(self) -> bool:
        """Whether it cannot lead out of this machine: a loopback address, or none at all."""
        return _is_own(self.local) or self.local == self.remote

    def __str__(self) -> str:
        ends = [
            f"{socket.inet_ntop(self.family, address)}:{port}"
            for address, port in ((self.local, self.local_port), (self.remote, self.remote_port))
        ]
        return " to ".join(ends)


class Sockets(Netlink):
    """The sockets of this machine's network namespace."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_SOCK_DIAG)

    def leading_out(self) -> list[Socket]:
        """Return the TCP connections with others, and the UDP sockets that are bound to an outer address."""
        connected = 0xFFF & ~(1 << _LISTEN | 1 << _TIME_WAIT | 1 << _CLOSE)
        found = [*self._list(socket.IPPROTO_TCP, connected), *self._list(socket.IPPROTO_UDP, 0xFFFF)]
        return [one for one in found if not one.is_inside]

    def end(self, sockets: Sequence[Socket]) -> list[int]:
        """End them; return an errno for each, 0 for success and for one that had gone already."""
        requests = [
            (_DESTROY, 0, _ASK.pack(one.family, one.protocol, 0, 0, 0xFFFF) + one.id) for one in sockets
        ]
        return [0 if number == errno.ENOENT else number for number in self.carry_out(requests)]

    def _list(self, protocol: int, states: int) -> Iterator[Socket]:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _ASK.pack(family, protocol, 0, 0, states) + bytes(_ID_BYTES)
            for answer in self.dump(_BY_FAMILY, _BY_FAMILY, body):
                yield Socket(protocol, answer)


def _is_own(address: bytes) -> bool:
    mapped = address[12:] if address[:12] == bytes(10) + b"\xff\xff" else address
    if len(mapped) == 4:
        return mapped[0] == 127 or not any(mapped)
    return address in (bytes(16), bytes(15) + b"\x01")
