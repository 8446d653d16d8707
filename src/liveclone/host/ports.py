"""Published ports on a bridge network: one forwarder process a machine, started here.

    reserve ports (bind and listen, in the host's network)  ── taken? Conflict, at once, with the port's number
        └─> start_forwarder: a process inside the machine's network namespace gets the sockets

As the sockets listen before the process exists, nothing has to be waited for: who connects early is served a moment
later. The process (host/portproxy) ends with the machine, or by `stop_forwarder`. The `user` network has no need of
it: there QEMU forwards.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Conflict, Refused
from ..model.machine import ProcessRef
from ..model.network import Port
from . import netns, process

# The package under a name of its own, so that nothing else of ours is loaded; the folder comes last, so that none of its
# modules is taken for one of the standard library.
PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); from portproxy.forwarder import main; main(sys.argv[1:])"
)
_BACKLOG = 128


@dataclass(frozen=True)
class Reservation:
    """Ports that nobody else can get any more: `ports` with the real numbers, and their listening sockets."""

    ports: tuple[Port, ...]
    sockets: tuple[socket.socket, ...]


@contextlib.contextmanager
def reserve(ports: Sequence[Port]) -> Iterator[Reservation]:
    """Bind all `ports` (host port 0: the kernel chooses); our copies of the sockets are closed at the end.

    Raises:
        Conflict: one is taken (code "port-taken").
        Refused: an address is not the host's, or a number is none. No socket is left in any case.
    """
    with contextlib.ExitStack() as stack:
        sockets = tuple(stack.enter_context(_bind(port)) for port in ports)
        numbered = tuple(
            port.replace(host_port=sock.getsockname()[1]) for port, sock in zip(ports, sockets, strict=True)
        )
        yield Reservation(numbered, sockets)


def _bind(port: Port) -> socket.socket:
    shown = f"{port.host_ip}:{port.host_port}"
    if not (0 <= port.host_port <= 65535 and 1 <= port.guest_port <= 65535):
        raise _bad_port(shown, f"guest port {port.guest_port}")
    try:
        family = socket.getaddrinfo(port.host_ip, None, flags=socket.AI_NUMERICHOST)[0][0]
    except socket.gaierror as error:
        raise _bad_port(shown, str(error)) from error
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # old connections in TIME_WAIT do not count
        sock.bind((port.host_ip, port.host_port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise _bad_port(shown, str(error)) from error
        raise Conflict(
            f"port {port.host_port} is taken",
            code="port-taken",
            tried=f"publishing the guest's port {port.guest_port}",
            on=shown,
            seen=str(error),
            next_step=f"choose another port, or see who has it: ss -ltnp 'sport = :{port.host_port}'",
        ) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _bad_port(shown: str, seen: str) -> Refused:
    return Refused(
        f"{shown} cannot be published",
        code="bad-port",
        tried="publishing a port",
        on=shown,
        seen=seen,
        next_step="use an address of this host and a port from 1 to 65535 (on the host also 0: any free one)",
    )


def start_forwarder(
    namespace: str,
    ports: Sequence[Port] | Reservation,
    guest_ip: str,
    *,
    log: Path,
    manifest: Path,
    machine: ProcessRef,
) -> tuple[ProcessRef, tuple[Port, ...]]:
    """Start forwarding `ports` to the guest, and return the forwarder and the ports with their real numbers.

    Args:
        namespace: where the guest's address is reached.
        ports: what to publish, or a reservation, which stays the caller's to close.
        log: a file that the forwarder writes a few lines to.
        manifest: the machine's; asked for a successor when `machine` has ended (portproxy/machine.py).
        machine: the process whose end is the forwarder's.

    Raises:
        Conflict, Refused: as `reserve` does.
        NotFound: there is no such namespace. No process is left in any case.
    """
    if not isinstance(ports, Reservation):
        with reserve(ports) as reservation:
            return start_forwarder(
                namespace, reservation, guest_ip, log=log, manifest=manifest, machine=machine
            )
    descriptors = [sock.fileno() for sock in ports.sockets]
    argv = [
        # -I -S: neither the site's folders nor the environment; saves 0.5 MiB and 10 ms
        *(sys.executable, "-I", "-S", "-c", PROGRAM, str(Path(__file__).parent)),
        *(guest_ip, str(manifest.absolute())),
        f"{machine.pid}:{machine.start_ticks}:{machine.boot_id}",
        *(f"{fd}:{port.guest_port}" for fd, port in zip(descriptors, ports.ports, strict=True)),
    ]
    # A child gets the network namespace of the thread that starts it.
    started = netns.run_inside(
        namespace, lambda: process.start(argv, cwd=Path("/"), log=log.absolute(), pass_fds=descriptors)
    )
    return started, ports.ports


async def stop_forwarder(forwarder: ProcessRef, *, grace_s: float = 2.0) -> None:
    """End a forwarder and its connections; returns when it is gone and its ports are free. Gone already is no error."""
    await process.end(forwarder, grace_s=grace_s)
