"""The forwarder of one machine's published ports: a program of its own, kept small because every machine has one.

    client ──> listening socket ┐                    ┌─> socket made here ──> guest
               (host's network, │  one epoll loop,   │   (this process lives in the
               bound by parent) ┘  one shared buffer ┘    machine's network namespace)

host/ports.py starts it; it imports nothing of ours, so that it is run as a file and loads little (`-I -S`).

    portproxy.py GUEST_IP MANIFEST PID:START_TICKS:BOOT_ID LISTEN_FD:GUEST_PORT...

Back-pressure: a side is read only while nothing waits to be written to the other. Half-closes are passed on.

While the guest's NIC is away (0.2-0.4 s of a snapshot), connections that stand just stall. One that is made in the gap
would lose its SYN and wait a whole second for the kernel to send the next: so an attempt without an answer is dropped
and dialled again (PATIENCE_S; the guest's application never sees it, as the handshake was not finished). Attempts that
fail are repeated until RETRY_S after the accept; then the client gets a reset.

It ends with the machine: the pidfd of the machine's process fires, the manifest is read, and when another live process
stands there (a handover), that one is watched from now on. As the manifest may be written a moment after the old
process has gone, the same dead process there means: look again, for GRACE_S.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import socket
import sys
import time

RETRY_S = 3.0  # a NIC is away for 0.2-0.4 s; the rest is for a busy host
RETRY_EVERY_S = 0.05
# Of each attempt to connect; the last one has the kernel's, two minutes.
PATIENCE_S = (0.1, 0.1, 0.1, 0.1, 0.2, 0.4, 0.8)
GRACE_S = 5.0
LOOK_EVERY_S = 0.05
ACCEPT_AGAIN_S = 0.1
_CHUNK = 256 * 1024
_MANIFEST_MAX = 1 << 20

_buffer = bytearray(_CHUNK)
_view = memoryview(_buffer)


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} ports: {text}\n")
    sys.stderr.flush()


# ------------------------------------------------------------------ the machine's process


class Machine:
    """The process whose end is ours, and where its successor would be written down."""

    def __init__(self, manifest: str, process: tuple[int, int, str]) -> None:
        self.manifest = manifest
        self.process = process
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self.boot_id = file.read().strip()

    def open_pidfd(self) -> int | None:
        """Return a pidfd of the process, or None when it does not run."""
        pid, start_ticks, boot_id = self.process
        if boot_id != self.boot_id:
            return None
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return None
        if _start_ticks(pid) == start_ticks:
            return fd
        os.close(fd)
        return None

    def read_successor(self) -> bool:
        """Read the manifest; False when it says that the machine has no process, or is gone itself."""
        import json  # here, as only a handover needs it: 1 MiB

        try:
            with open(self.manifest, "rb") as file:
                process = json.loads(file.read(_MANIFEST_MAX))["process"]
            if process is None:
                return False
            self.process = (process["pid"], process["start_ticks"], process["boot_id"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log(f"{self.manifest} cannot be read: {error!r}")
        return True


def _start_ticks(pid: int) -> int:
    """Return field 22 of /proc/PID/stat, or -1 when the process is gone or a zombie: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return -1
    fields = text[text.rindex(b")") + 2 :].split()
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


# ------------------------------------------------------------------ connections


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


class Forwarder:
    """The loop and everything in it."""

    def __init__(self, guest_ip: str, machine: Machine, listeners: dict[int, int]) -> None:
        self.guest_ip = guest_ip
        self.machine = machine
        self.poller = select.epoll()
        self.listeners = {fd: (socket.socket(fileno=fd), port) for fd, port in listeners.items()}
        self.ends: dict[int, End] = {}
        # (when to dial, a number that settles ties, the flow, the attempt that this is to replace)
        self.dials: list[tuple[float, int, Flow, End | None]] = []
        self.sequence = 0
        self.pidfd = -1
        self.look_until = 0.0
        self.look_at: float | None = None
        self.accept_at: float | None = 0.0  # None: accepting
        self.closing: list[socket.socket] = []
        self.last_failure = ""

    def run(self) -> None:
        for listener, _ in self.listeners.values():
            listener.setblocking(False)
        if not self.watch():
            self.look_from_now()
        while True:
            # Only between rounds: a descriptor given anew would get events that were meant for the old one.
            while self.closing:
                self.closing.pop().close()
            for fd, event in self.poller.poll(self.timeout()):
                if fd == self.pidfd:
                    self.let_go_of_process()
                elif fd in self.listeners and self.accept_at is None:
                    self.accept(*self.listeners[fd])
                elif fd in self.ends:
                    self.serve(self.ends[fd], event)
            now = time.monotonic()
            if self.accept_at is not None and self.accept_at <= now:
                self.accept_clients(True)
            while self.dials and self.dials[0][0] <= now:
                self.dial_again(*heapq.heappop(self.dials)[2:])
            if self.look_at is not None and self.look_at <= now and not self.look(now):
                _log("the machine has ended")
                return

    def timeout(self) -> float:
        """Return the seconds until something is due, -1 if nothing is (epoll_wait's "for ever")."""
        first = self.dials[0][0] if self.dials else None
        due = min((at for at in (self.look_at, self.accept_at, first) if at is not None), default=None)
        return -1 if due is None else max(0.0, due - time.monotonic())

    # the machine's process

    def watch(self) -> bool:
        fd = self.machine.open_pidfd()
        if fd is None:
            return False
        self.pidfd = fd
        self.look_at = None
        self.poller.register(fd, select.EPOLLIN)
        return True

    def let_go_of_process(self) -> None:
        self.poller.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        self.look_from_now()

    def look_from_now(self) -> None:
        self.look_until = time.monotonic() + GRACE_S
        self.look_at = 0.0

    def look(self, now: float) -> bool:
        """Look for the machine's process in its manifest; False when the machine has ended."""
        if not self.machine.read_successor():
            return False
        if self.watch():
            _log(f"watching process {self.machine.process[0]}")
            return True
        self.look_at = now + LOOK_EVERY_S
        return now < self.look_until

    # accept and connect

    def accept_clients(self, on: bool) -> None:
        self.accept_at = None if on else time.monotonic() + ACCEPT_AGAIN_S
        for fd in self.listeners:
            if on:
                self.poller.register(fd, select.EPOLLIN)
            else:
                self.poller.unregister(fd)

    def accept(self, listener: socket.socket, port: int) -> None:
        # First the guest's end: a client that is accepted and has none would hold a descriptor for nothing.
        sock = None
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            client, _ = listener.accept()
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.note(f"no more connections just now: {error.strerror}")
                self.accept_clients(False)  # clients wait in the backlog meanwhile
            return
        client.setblocking(False)
        self.connect(Flow(client, port), sock)

    def connect(self, flow: Flow, sock: socket.socket) -> None:
        sock.setblocking(False)
        guest = flow.guest = End(sock, flow)
        guest.peer, flow.client.peer = flow.client, guest
        number = sock.connect_ex((self.guest_ip, flow.port))
        if number not in (0, errno.EINPROGRESS):
            self.connect_failed(flow, guest, number)
            return
        self.want(guest, select.EPOLLOUT)
        if flow.attempts < len(PATIENCE_S):
            self.dial_in(PATIENCE_S[flow.attempts], flow, guest)
        flow.attempts += 1

    def connect_failed(self, flow: Flow, guest: End | None, number: int) -> None:
        if guest is not None:
            self.drop(guest)
        flow.guest = None
        if time.monotonic() - flow.accepted_at < RETRY_S:
            self.dial_in(RETRY_EVERY_S, flow, None)
        else:
            self.abort(flow, OSError(number, os.strerror(number)))

    def dial_in(self, seconds: float, flow: Flow, instead_of: End | None) -> None:
        self.sequence += 1
        heapq.heappush(self.dials, (time.monotonic() + seconds, self.sequence, flow, instead_of))

    def dial_again(self, flow: Flow, instead_of: End | None) -> None:
        if flow.connected or flow.closed or flow.guest is not instead_of:
            return
        if instead_of is not None and _is_connected(instead_of.sock):
            return  # since the poll; its event comes with the next
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            self.connect_failed(flow, instead_of, error.errno or errno.EMFILE)
            return
        if instead_of is not None:
            self.drop(instead_of)
        self.connect(flow, sock)

    def connect_done(self, flow: Flow) -> None:
        flow.connected = True
        for end in (flow.client, flow.client.peer):
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.update(end)

    # data

    def serve(self, end: End, event: int) -> None:
        flow = end.flow
        try:
            if not flow.connected or event & select.EPOLLERR:
                number = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not flow.connected:
                    if number:
                        self.connect_failed(flow, end, number)
                    else:
                        self.connect_done(flow)
                    return
                if number:
                    raise OSError(number, os.strerror(number))
            if end.backlog and event & (select.EPOLLOUT | select.EPOLLHUP):
                self.flush(end)
            if event & (select.EPOLLIN | select.EPOLLHUP) and not end.eof_read and not end.peer.backlog:
                self.read(end)
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(flow, error)
            return
        if end.eof_read and end.peer.eof_read:
            self.close(flow)
        else:
            self.update(end)
            self.update(end.peer)

    def read(self, end: End) -> None:
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

    def flush(self, end: End) -> None:
        end.backlog = end.backlog[end.sock.send(end.backlog) :]

    # bookkeeping

    def update(self, end: End) -> None:
        mask = select.EPOLLOUT if end.backlog else 0
        if not end.eof_read and not end.peer.backlog:
            mask |= select.EPOLLIN
        self.want(end, mask)

    def want(self, end: End, mask: int) -> None:
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
        self.want(end, 0)
        self.closing.append(end.sock)

    def close(self, flow: Flow) -> None:
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
        self.close(flow)

    def note(self, failure: str) -> None:
        """Log a failure, unless it is the same as the last: one line, not one a connection."""
        if failure != self.last_failure:
            self.last_failure = failure
            _log(failure)


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


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


if __name__ == "__main__":
    main(sys.argv[1:])
