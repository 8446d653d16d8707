"""Connect to the guest, whatever becomes of its NIC meanwhile.

While the guest's NIC is away (0.2-0.4 s of a snapshot), connections that stand just stall. One that is made in the gap
would lose its SYN and wait a whole second for the kernel to send the next: so an attempt without an answer is dropped
and dialled again (PATIENCE_S; the guest's application never sees it, as the handshake was not finished). Attempts that
fail are repeated until RETRY_S after the accept; then the client gets a reset.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import socket
import time

from .relay import End, Flow, Relay

RETRY_S = 3.0  # a NIC is away for 0.2-0.4 s; the rest is for a busy host
RETRY_EVERY_S = 0.05
# Of each attempt to connect; the last one has the kernel's, two minutes.
PATIENCE_S = (0.1, 0.1, 0.1, 0.1, 0.2, 0.4, 0.8)


class Dialer:
    """The attempts that are under way, and those that are to come."""

    def __init__(self, guest_ip: str, relay: Relay) -> None:
        self.guest_ip = guest_ip
        self.relay = relay
        # (when to dial, a number that settles ties, the flow, the attempt that this is to replace)
        self.dials: list[tuple[float, int, Flow, End | None]] = []
        self.sequence = 0

    @property
    def due_at(self) -> float | None:
        """When the next attempt is to be made."""
        return self.dials[0][0] if self.dials else None

    def dial_due(self, now: float) -> None:
        """Make the attempts whose time has come."""
        while self.dials and self.dials[0][0] <= now:
            self._dial_again(*heapq.heappop(self.dials)[2:])

    def dial(self, flow: Flow, sock: socket.socket) -> None:
        """Begin to connect `sock` to the guest; it is the flow's from now on."""
        sock.setblocking(False)
        guest = flow.guest = End(sock, flow)
        guest.peer, flow.client.peer = flow.client, guest
        number = sock.connect_ex((self.guest_ip, flow.port))
        if number not in (0, errno.EINPROGRESS):
            self._failed(flow, guest, number)
            return
        self.relay.want(guest, select.EPOLLOUT)
        if flow.attempts < len(PATIENCE_S):
            self._dial_in(PATIENCE_S[flow.attempts], flow, guest)
        flow.attempts += 1

    def answered(self, guest: End) -> None:
        """Go on with an attempt that has come to its end, well or not."""
        number = guest.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._failed(guest.flow, guest, number)
        else:
            self.relay.begin(guest.flow)

    def _failed(self, flow: Flow, guest: End | None, number: int) -> None:
        if guest is not None:
            self.relay.drop(guest)
        flow.guest = None
        if time.monotonic() - flow.accepted_at < RETRY_S:
            self._dial_in(RETRY_EVERY_S, flow, None)
        else:
            self.relay.abort(flow, OSError(number, os.strerror(number)))

    def _dial_in(self, seconds: float, flow: Flow, instead_of: End | None) -> None:
        self.sequence += 1
        heapq.heappush(self.dials, (time.monotonic() + seconds, self.sequence, flow, instead_of))

    def _dial_again(self, flow: Flow, instead_of: End | None) -> None:
        if flow.connected or flow.closed or flow.guest is not instead_of:
            return
        if instead_of is not None and _is_connected(instead_of.sock):
            return  # since the poll; its event comes with the next
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            self._failed(flow, instead_of, error.errno or errno.EMFILE)
            return
        if instead_of is not None:
            self.relay.drop(instead_of)
        self.dial(flow, sock)


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
