"""A virtio-serial port: whoever is connected at the host just now, and one channel in the guest that never ends.

A guest that stands still takes nothing and says nothing; what the host sent meanwhile waits. What the guest says while
nobody is connected is lost, as with QEMU.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

from .faults import Faults

_CHUNK = 64 * 1024


class Port:
    """One port. `guest_fd` is the guest's end; the guest owns it.

    Args:
        listener: where the host connects; one client at a time, the next one waits.
        runs: set while the guest runs.
        wake: called before the guest is given anything.
    """

    def __init__(
        self, listener: socket.socket, runs: threading.Event, faults: Faults, wake: Callable[[], None]
    ) -> None:
        self._listener = listener
        self._runs = runs
        self._wake = wake
        self._mute = faults.has("mute", "agent")
        self._torn = b'{"id":"somebody else\'s","ok":tr' if faults.has("torn", "agent") else b""
        self._guest, end = socket.socketpair()
        self.guest_fd = end.detach()

    def relay(self) -> None:
        """Carry bytes both ways for ever; a thread's work."""
        client: socket.socket | None = None
        while True:
            ready, _, _ = select.select([client or self._listener, self._guest], [], [])
            self._runs.wait()
            if self._guest in ready:
                said = self._guest.recv(_CHUNK)
                if client is not None and not self._mute:
                    self._send(client, self._torn + said)
            if client is None and self._listener in ready:
                client, _ = self._listener.accept()
            elif client is not None and client in ready:
                given = self._receive(client)
                if given:
                    self._wake()
                    self._guest.sendall(given)
                else:
                    client.close()
                    client = None

    @staticmethod
    def _receive(client: socket.socket) -> bytes:
        try:
            return client.recv(_CHUNK)
        except ConnectionError:
            return b""

    @staticmethod
    def _send(client: socket.socket, data: bytes) -> None:
        try:
            client.sendall(data)
        except OSError:
            return  # it has gone: the next turn sees that
