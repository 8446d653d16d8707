"""The loop: accept clients, give every event to whom it belongs, end with the machine.

forwarder.main([GUEST_IP, MANIFEST, "PID:START_TICKS:BOOT_ID", "LISTEN_FD:GUEST_PORT", ...])
"""

from __future__ import annotations

import errno
import select
import socket
import time

from .dialer import Dialer
from .log import log
from .machine import Machine, Watch
from .relay import Flow, Relay

ACCEPT_AGAIN_S = 0.1


class Forwarder:
    """One machine's published ports.

    Args:
        listeners: the guest's port for each descriptor of a listening socket.
    """

    def __init__(self, guest_ip: str, machine: Machine, listeners: dict[int, int]) -> None:
        self.poller = select.epoll()
        self.listeners = {fd: (socket.socket(fileno=fd), port) for fd, port in listeners.items()}
        self.watch = Watch(machine, self.poller)
        self.relay = Relay(self.poller, guest_ip)
        self.dialer = Dialer(guest_ip, self.relay)
        self.accept_at: float | None = 0.0  # None: accepting

    def run(self) -> None:
        """Forward until the machine has ended."""
        for listener, _ in self.listeners.values():
            listener.setblocking(False)
        while True:
            self.relay.close_dropped()
            for fd, event in self.poller.poll(self._timeout()):
                if fd == self.watch.pidfd:
                    self.watch.process_ended()
                elif fd in self.listeners and self.accept_at is None:
                    self._accept(*self.listeners[fd])
                elif fd in self.relay.ends:
                    end = self.relay.ends[fd]
                    if end.flow.connected:
                        self.relay.carry(end, event)
                    else:
                        self.dialer.answered(end)
            now = time.monotonic()
            if self.accept_at is not None and self.accept_at <= now:
                self._accept_clients(True)
            self.dialer.dial_due(now)
            if not self.watch.look(now):
                log("the machine has ended")
                return

    def _timeout(self) -> float:
        """Return the seconds until something is due, -1 if nothing is (epoll_wait's "for ever")."""
        times = (self.watch.look_at, self.accept_at, self.dialer.due_at)
        due = min((at for at in times if at is not None), default=None)
        return -1 if due is None else max(0.0, due - time.monotonic())

    def _accept_clients(self, on: bool) -> None:
        self.accept_at = None if on else time.monotonic() + ACCEPT_AGAIN_S
        for fd in self.listeners:
            if on:
                self.poller.register(fd, select.EPOLLIN)
            else:
                self.poller.unregister(fd)

    def _accept(self, listener: socket.socket, port: int) -> None:
        # First the guest's end: a client that is accepted and has none would hold a descriptor for nothing.
        sock = None
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            client, _ = listener.accept()
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.relay.note(f"no more connections just now: {error.strerror}")
                self._accept_clients(False)  # clients wait in the backlog meanwhile
            return
        client.setblocking(False)
        self.dialer.dial(Flow(client, port), sock)


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: list[str]) -> None:
    guest_ip, manifest, process, *pairs = arguments
    pid, start_ticks, boot_id = process.split(":")
    listeners = {int(fd): int(port) for fd, _, port in (pair.partition(":") for pair in pairs)}
    _raise_file_limit()
    Forwarder(guest_ip, Machine(manifest, (int(pid), int(start_ticks), boot_id)), listeners).run()
