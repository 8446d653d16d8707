"""Carry bytes between the two ends of each connection.

Back-pressure: a side is read only while nothing waits to be written to the other. Half-closes are passed on.
"""

from __future__ import annotations

import os
import select
import socket
import time

from .log import log

_CHUNK = 256 * 1024

_buffer = bytearray(_CHUNK)
_view = memoryview(_buffer)


class End:
    """One of the two sockets of a connection."""

    __slots__ = ("backlog", "eof_read", "flow", "mask", "peer", "sock")

    def __init__(self, sock: socket.socket, flow: Flow) -> None:
        self.sock = sock
        self.flow = flow
        self.peer = self
        self.backlog = memoryview(b"")  # to be written to this socket
        self.eof_read = False
        self.mask = 0  # what epoll watches; 0: not registered, since it reports HUP and ERR in any case


class Flow:
    """One connection: the client's end, and the guest's once it is connected."""

    __slots__ = ("accepted_at", "attempts", "client", "closed", "connected", "guest", "port")

    def __init__(self, client: socket.socket, port: int) -> None:
        self.client = End(client, self)
        self.guest: End | None = None
        self.attempts = 0
        self.connected = False
        self.closed = False
        self.port = port
        self.accepted_at = time.monotonic()


class Relay:
    """All connections there are, and what epoll watches of them."""

    def __init__(self, poller: select.epoll, guest_ip: str) -> None:
        self.poller = poller
        self.guest_ip = guest_ip
        self.ends: dict[int, End] = {}
        self.closing: list[socket.socket] = []
        self.last_failure = ""

    def close_dropped(self) -> None:
        """Close the sockets that were dropped.

        Only between rounds: a descriptor given anew would get events that were meant for the old one.
        """
        while self.closing:
            self.closing.pop().close()

    def begin(self, flow: Flow) -> None:
        """Carry from now on: the guest's end is connected."""
        flow.connected = True
        try:
            for end in (flow.client, flow.client.peer):
                end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._update(end)
        except OSError as error:
            self.abort(flow, error)

    def carry(self, end: End, event: int) -> None:
        """Do what an event at one end of a connection asks for."""
        flow = end.flow
        try:
            if event & select.EPOLLERR:
                number = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number))
            if end.backlog and event & (select.EPOLLOUT | select.EPOLLHUP):
                self._flush(end)
            if event & (select.EPOLLIN | select.EPOLLHUP) and not end.eof_read and not end.peer.backlog:
                self._read(end)
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(flow, error)
            return
        if end.eof_read and end.peer.eof_read:
            self._close(flow)
        else:
            self._update(end)
            self._update(end.peer)

    def _read(self, end: End) -> None:
        count = end.sock.recv_into(_buffer)
        peer = end.peer
        if count == 0:
            # All that came before has been written: a side is not read while the other has a backlog.
            end.eof_read = True
            peer.sock.shutdown(socket.SHUT_WR)
            return
        try:
            sent = peer.sock.send(_view[:count])
        except BlockingIOError:
            sent = 0
        if sent < count:
            peer.backlog = memoryview(bytes(_view[sent:count]))

    def _flush(self, end: End) -> None:
        end.backlog = end.backlog[end.sock.send(end.backlog) :]

    def _update(self, end: End) -> None:
        mask = select.EPOLLOUT if end.backlog else 0
        if not end.eof_read and not end.peer.backlog:
            mask |= select.EPOLLIN
        self.want(end, mask)

    def want(self, end: End, mask: int) -> None:
        """Have epoll watch one end for the events of `mask`; 0 for none."""
        if mask == end.mask:
            return
        fd = end.sock.fileno()
        if not mask:
            self.poller.unregister(fd)
            del self.ends[fd]
        elif end.mask:
            self.poller.modify(fd, mask)
        else:
            self.poller.register(fd, mask)
            self.ends[fd] = end
        end.mask = mask

    def drop(self, end: End) -> None:
        """Watch an end no more, and close it after this round."""
        self.want(end, 0)
        self.closing.append(end.sock)

    def _close(self, flow: Flow) -> None:
        flow.closed = True
        for end in (flow.client, flow.guest):
            if end is not None:
                self.drop(end)

    def abort(self, flow: Flow, error: OSError) -> None:
        """Close both ends with a reset: neither side may take what it has got for the whole."""
        self.note(f"connection to {self.guest_ip}:{flow.port} ended: {error.strerror}")
        for end in (flow.client, flow.guest):
            if end is not None:
                end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._close(flow)

    def note(self, failure: str) -> None:
        """Log a failure, unless it is the same as the last: one line, not one a connection."""
        if failure != self.last_failure:
            self.last_failure = failure
            log(failure)
