"""A tap on a bridge: the wire between a machine's NIC and the network. The fast path, plain ioctl (1 ms).

A tap is not persistent: it lives as long as somebody has its descriptor, so a QEMU that dies, however it dies,
takes its taps along. Names can be foretold, for `ip netns exec NS tcpdump -i t0a1b2c3d4e5f0`:

    t 0a1b2c3d4e5f 0 b
    │ │            │ └─ only while an older tap of the same NIC is still there: b, c, ... (a source that hands
    │ │            │    over, or is plugged again before the kernel has finished removing the old one)
    │ │            └─── the NIC's index, 0-9 a-z
    │ └──────────────── the machine's id
    └────────────────── 15 characters are all a link's name may have
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import string
import struct
import time

from ..errors import Conflict, LivecloneError, NotFound, Refused, Unsupported
from . import netns

DEVICE = "/dev/net/tun"

# linux/if_tun.h: TUNSETIFF, TUNGETIFF and its flags. EXCL: never join a tap that somebody else has made.
_SET_IFF, _GET_IFF = 0x400454CA, 0x800454D2
_TAP, _NO_PI, _VNET_HDR, _EXCL = 0x0002, 0x1000, 0x4000, 0x8000
# linux/sockios.h
_GET_INDEX, _ADD_PORT, _GET_FLAGS, _SET_FLAGS = 0x8933, 0x89A2, 0x8913, 0x8914
_UP, _RUNNING = 0x1, 0x40
_LINK_NEWS = 1  # RTMGRP_LINK, linux/rtnetlink.h
_START_S = 1.0
_IFREQ = 40  # sizeof(struct ifreq) on 64-bit

_INDEXES = string.digits + string.ascii_lowercase
_SUFFIXES: tuple[str, ...] = ("", *string.ascii_lowercase[1:])


def tap_name(machine_id: str, nic_index: int) -> str:
    """Return the name of the tap of a machine's NIC, 14 characters.

    Raises:
        Refused: the index is not 0 to 35.
    """
    if not 0 <= nic_index < len(_INDEXES):
        raise Refused(
            f"a machine can have {len(_INDEXES)} NICs on a bridge",
            code="too-many-nics",
            tried="naming a tap",
            on=machine_id,
            seen=f"NIC {nic_index}",
        )
    return f"t{machine_id[:12]}{_INDEXES[nic_index]}"


def open_tap(namespace: str, bridge: str, name: str) -> int:
    """Make a tap on `bridge` inside the namespace, up, and return its descriptor; the caller owns it.

    It has a virtio-net header (QEMU sees that by itself). If `name` is still taken, a letter is added; `name_of`
    tells. The tap ends with the last copy of the descriptor.

    Raises:
        NotFound: there is no such namespace or bridge (code "no-network": make it, try again).
        Conflict: the name is taken with every letter (code "tap-taken").
        Unsupported: we are not root, or there is no tun device. No tap is left in any case.
    """
    return netns.hold(namespace, lambda: _make(namespace, bridge, name))


def name_of(fd: int) -> str:
    """Return the name of the tap that `fd` is a descriptor of."""
    answer = fcntl.ioctl(fd, _GET_IFF, bytes(_IFREQ))
    return bytes(answer[:16]).rstrip(b"\0").decode()


def _make(namespace: str, bridge: str, name: str) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(
            "this host has no tun device",
            code="no-tun",
            tried="making a tap",
            on=DEVICE,
            seen=str(error),
            next_step="modprobe tun, or use the user network",
        ) from error
    try:
        taken = _claim(fd, name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            _attach(control, bridge, taken)
    except OSError as error:
        os.close(fd)
        raise _translate(error, namespace, bridge, name) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _claim(fd: int, name: str) -> str:
    for suffix in _SUFFIXES:
        request = struct.pack("16sH22x", (name + suffix).encode(), _TAP | _NO_PI | _VNET_HDR | _EXCL)
        try:
            fcntl.ioctl(fd, _SET_IFF, request)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            continue
        return name + suffix
    raise Conflict(
        f"every name for tap {name} is taken",
        code="tap-taken",
        tried="making a tap",
        on=name,
        seen=f"{len(_SUFFIXES)} taps of this NIC",
        next_step="look for old QEMU processes that hold them",
    )


def _attach(control: socket.socket, bridge: str, name: str) -> None:
    answer = fcntl.ioctl(control, _GET_INDEX, struct.pack("16s24x", name.encode()))
    index = struct.unpack_from("i", answer, 16)[0]
    fcntl.ioctl(control, _ADD_PORT, struct.pack("16si20x", bridge.encode(), index))
    flags = _flags(control, name)
    fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", name.encode(), flags | _UP))
    if not _flags(control, bridge) & _RUNNING:
        _wait_until_running(control, bridge)


def _flags(control: socket.socket, link: str) -> int:
    answer = fcntl.ioctl(control, _GET_FLAGS, struct.pack("16s24x", link.encode()))
    flags: int = struct.unpack_from("H", answer, 16)[0]
    return flags


def _wait_until_running(control: socket.socket, bridge: str) -> None:
    """Wait for a bridge that has just got its first port.

    The kernel starts it in a worker of its own, at once on a quiet host; until then it drops what it would send, as
    the answer to a guest's first ARP request. One that does not start in time is no failure: guests ask again.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as news:
        news.bind((0, _LINK_NEWS))
        until = time.monotonic() + _START_S
        while not _flags(control, bridge) & _RUNNING and (left_s := until - time.monotonic()) > 0:
            select.select([news], [], [], left_s)
            with contextlib.suppress(OSError):
                news.recv(65536, socket.MSG_DONTWAIT)


def _translate(error: OSError, namespace: str, bridge: str, name: str) -> LivecloneError:
    if error.errno == errno.ENODEV:
        return NotFound(
            f"there is no bridge {bridge} in network namespace {namespace}",
            code="no-network",
            tried="adding a tap to a bridge",
            on=name,
            seen=str(error),
            next_step="start a machine on the bridge network: it repairs the bridge",
        )
    return netns.translate(error, f"adding tap {name} to {bridge}", namespace)
