"""Established TCP connections, and to whom: a clone has copies of them that lead nowhere."""

from __future__ import annotations

import socket
import struct

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_ESTABLISHED = "01"


class Connections(Check):
    name = "connections"

    def look(self, guest: Guest) -> Iterator[Finding]:
        owners = {inode: program for program in guest.programs for inode in program.sockets()}
        for table in ("tcp", "tcp6"):
            for line in guest.read(f"/proc/net/{table}").splitlines()[1:]:
                _, local, remote, state, *rest = line.split()
                inode = rest[5]
                if state != _ESTABLISHED or is_loopback(remote):
                    continue  # both ends of a local one are copied together
                owner = owners.get(inode)
                yield finding(
                    str(owner) if owner else "the kernel, or a program that has just ended",
                    f"{render(local)} is connected to {render(remote)}",
                    "hook" if owner and guest.care_for(owner) else "accept",
                    "the source keeps it; in a clone it ends, and the program has to connect again",
                )


def address(text: str) -> bytes:
    """Return the bytes of an address in /proc/net/tcp: words of 32 bits, each in the machine's own order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    return struct.pack(f"={len(words)}I", *words)


def is_loopback(end: str) -> bool:
    raw = address(end.split(":")[0])
    mapped = raw[12:] if raw[:12] == bytes(10) + b"\xff\xff" else raw
    return mapped[0] == 127 if len(mapped) == 4 else raw == bytes(15) + b"\x01"


def render(end: str) -> str:
    """Return "10.0.0.2:80" or "[fd00::1]:80"."""
    host, port = end.split(":")
    raw = address(host)
    if len(raw) == 4:
        return f"{socket.inet_ntoa(raw)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{int(port, 16)}"


CHECK = Connections
