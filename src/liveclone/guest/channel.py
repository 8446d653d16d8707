"""Lines to and from whoever is connected at the host just now.

What the kernel's virtio_console does (drivers/char/virtio_console.c), and what follows from it:

- while no client is connected at the host, read() returns b"" at once and poll() says POLLHUP, again and
  again, though the port is fine: a loop around either would spin. SIGIO (O_ASYNC) does tell of each
  change, but a signal goes to the process, not to the thread that serves this port, and one sent between the
  read and the sleep would be lost. Each change (client came, client went, data came, buffers
  freed) also wakes the port's wait queue, and an *edge-triggered* epoll reports exactly those: it sleeps
  through a lasting POLLHUP and loses nothing between read and sleep, since the kernel queues the edge. So: epoll.
- a write without a client would block; not blocking, it fails with EAGAIN while poll() shows POLLHUP and no
  POLLOUT. There is nobody to hear the reply: it is dropped. The host asks again.
- one read() returns at most 4 KiB, one write() takes at most 32 KiB.

A FIFO and a socket pair behave alike for our purpose, so tests use those.
"""

from __future__ import annotations

import os
import select
import threading

from .frames import Splitter

_CHUNK = 64 * 1024


class PortGone(Exception):
    """The device itself was unplugged, or the channel closed: it will never speak again."""


class Channel:
    """Owns `read_fd` and `write_fd` (the same for a port) and makes them non-blocking."""

    def __init__(self, read_fd: int, write_fd: int | None = None) -> None:
        self._read_fd = read_fd
        self._write_fd = read_fd if write_fd is None else write_fd
        self._splitter = Splitter()
        self._write_lock = threading.Lock()
        self._stopping = False
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)  # readable from stop() on
        self._epoll = select.epoll()
        self._epoll.register(self._read_fd, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(self._stop_read, select.EPOLLIN)
        self._writable = select.poll()
        self._writable.register(self._write_fd, select.POLLOUT)
        self._writable.register(self._stop_read, select.POLLIN)

    @property
    def dropped(self) -> int:
        """Lines that were too long."""
        return self._splitter.dropped

    def read(self, timeout_s: float | None) -> list[bytes]:
        """Wait for bytes, at most `timeout_s`, and return the lines they complete (maybe none).

        Raises:
            PortGone: the device is unplugged, or stop() was called.
        """
        data = self._take()
        if not data:
            self._epoll.poll(-1 if timeout_s is None else max(0.0, timeout_s))
            data = self._take()
        return self._splitter.feed(data) if data else []

    def _take(self) -> bytes:
        if self._stopping:
            raise PortGone("stopped")
        try:
            return os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise PortGone(str(error)) from error

    def write(self, data: bytes) -> bool:
        """Send all of `data`, waiting for a slow host; False when nobody is there to take it."""
        with self._write_lock:
            left = memoryview(data)
            while left:
                try:
                    left = left[os.write(self._write_fd, left) :]
                except BlockingIOError:
                    if not any(events & select.POLLOUT for _, events in self._writable.poll()):
                        return False
                except OSError:
                    return False
        return True

    def stop(self) -> None:
        """Make the reader raise PortGone and every writer give up."""
        self._stopping = True
        os.write(self._stop_write, b".")

    def close(self) -> None:
        """Close everything; nobody may be in read() any more."""
        self._epoll.close()
        with self._write_lock:
            for fd in {self._read_fd, self._write_fd, self._stop_read, self._stop_write}:
                os.close(fd)
            self._write_fd = -1
