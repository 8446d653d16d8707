"""The few system calls that change the whole machine, in one place so that a test can record instead of do.

Sources: RNDADDENTROPY and RNDRESEEDCRNG of linux/random.h (random(4)); sethostname(2); clock_settime(2); mount(2).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import time

from . import netlink, process, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

_RNDADDENTROPY = 0x40085203  # _IOW('R', 0x03, int [2])
_RNDRESEEDCRNG = 0x5207  # _IO('R', 0x07), Linux 4.14
_MS_BIND = 0x1000
_IOCTL_VM_SOCKETS_GET_LOCAL_CID = 0x7B9  # linux/vm_sockets.h
# Addresses of one machine. Those below mean the hypervisor, the machine itself (told with vsock_loopback) and the host (told
# with vhost_vsock) to everybody; the last one means none.
_CIDS = range(3, 0xFFFFFFFF)
_TIOCVHANGUP = 0x5437  # asm-generic/ioctls.h


class Kernel:
    """The running kernel."""

    def hostname(self) -> str:
        return socket.gethostname()

    def set_hostname(self, name: str) -> None:
        socket.sethostname(name)

    def realtime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_REALTIME)

    def set_realtime_ns(self, now_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, now_ns)

    def draw(self, count: int) -> bytes:
        """Return `count` random bytes."""
        return os.getrandom(count)

    def add_entropy(self, seed: bytes, uncredited: bytes) -> None:
        """Mix both into the pool, credit `seed` in full, and let the generator take a new key from the pool at once.

        Writing to /dev/urandom alone mixes without a new key: two copies of one machine would go on
        giving the same bytes for up to five minutes (measured).
        """
        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        try:
            if uncredited:
                os.write(fd, uncredited)
            fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
        finally:
            os.close(fd)

    def end_connections(self) -> tuple[int, list[tuple[str, int]]]:
        """End all that leads out of this machine; return how many, and those that remain, each with an errno."""
        with sockets.Sockets() as diag:
            found = diag.leading_out()
            results = diag.end(found) if found else []
        left = [(str(one), number) for one, number in zip(found, results) if number]
        return len(found) - len(left), left

    def bind(self, file: str, target: str) -> None:
        """Let the file `target` show `file`, in the whole system."""
        import ctypes  # 0.1 s under emulation, and only once in a system's life

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(os.fsencode(file), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None):
            number = ctypes.get_errno()
            raise OSError(number, f"binding {file} over {target}: {os.strerror(number)}")

    def vsock_cid(self) -> int | None:
        """Return this machine's address for its host, None without such a device (vsock(7))."""
        try:
            fd = os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            (cid,) = struct.unpack("=I", fcntl.ioctl(fd, _IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4)))
        finally:
            os.close(fd)
        return cid if cid in _CIDS else None

    def hang_up(self, terminal: str) -> None:
        """Cut a terminal's line: its programs get SIGHUP, and none can read or write there any more."""
        fd = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TIOCVHANGUP)
        finally:
            os.close(fd)

    def forget_tracked(self) -> None:
        """Drop every entry of the connection tracking. Raises OSError (EINVAL without nf_conntrack_netlink)."""
        with netlink.Netlink(netlink.NETFILTER) as filters:
            netlink.raise_for(
                filters.carry_out([netlink.FORGET_TRACKED])[0], "dropping the entries of conntrack"
            )

    def remove_leased(self) -> int:
        """Take from all cards the addresses that they have for a time; return how many there were."""
        with netlink.Route() as route:
            return route.remove_leased()

    def interfaces(self) -> list[tuple[str, str, list[str]]]:
        """Return name, MAC and IPv4 addresses of every network card, without the loopback."""
        with netlink.Route() as route:
            addresses = route.addresses()
            return [
                (link.name, link.mac, [a.cidr for a in addresses if a.index == link.index])
                for link in route.links()
                if link.mac and not link.loopback
            ]

    def systemctl(self, *words: str) -> tuple[int, str]:
        """Let systemd do something; return the exit code and the last of what was said."""
        output = process.Output()
        try:
            code = process.start(["systemctl", *words], stdout=output.fd, stderr=output.fd).wait()
        finally:
            said = output.tail()
        return code, said

    def stop(self, units: Sequence[str], find: Callable[[], Iterable[int]]) -> tuple[int, str]:
        """Stop units as `systemctl` does; what the processes that `find` names leave in memory is overwritten (`wiping`)."""
        from . import wiping

        output = process.Output()
        try:
            argv = ["systemctl", "stop", *units]
            code = wiping.run(lambda: process.start(argv, stdout=output.fd, stderr=output.fd), find)
        finally:
            said = output.tail()
        return code, said

    def clean(self, go_on: Callable[[], None]) -> dict[str, Any]:
        """Clean free blocks and free memory, as long as `go_on` does not raise; return what was done (`clean`)."""
        from . import clean

        return {"disks": clean.clean_disks(go_on), "memory_bytes": clean.fill_memory(go_on)}

    def renew(self, environment: dict[str, str]) -> None:
        """Become a new process with the same program and number; nothing of our memory is left in it."""
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
        os.execve(sys.executable, words, {**os.environ, **environment})
