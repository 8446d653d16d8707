"""Find a virtio-serial port by its name and open it, waiting until it is there.

The kernel announces a port (uevent `add`) before it knows its name (uevent `change`). We listen to the
kernel's own announcements and read names from sysfs, so the agent needs neither udev nor its
symbolic links and may start before them. Listening begins before looking, so that nothing is missed.
"""

from __future__ import annotations

import errno
import os
import socket

from .errors import log

_CLASS = "/sys/class/virtio-ports"
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_LOOK_AGAIN_S = 2.0  # safety net: uevents lost to a full buffer, a port held by another process, no netlink


def find_port(name: str) -> str | None:
    """Return the device of the port called `name` ("/dev/vport1p1"), or None."""
    try:
        ports = os.listdir(_CLASS)
    except OSError:
        ports = []
    for port in ports:
        try:
            with open(f"{_CLASS}/{port}/name", encoding="utf-8") as file:
                if file.read().strip() == name:
                    return f"/dev/{port}"
        except OSError:
            continue  # not named yet, or unplugged while we looked
    link = f"/dev/virtio-ports/{name}"
    return link if os.path.exists(link) else None


def open_port(name: str) -> int:
    """Return a descriptor for the port called `name`; waits for as long as it takes."""
    with _open_uevents() as events:
        said = ""
        while True:
            path = find_port(name)
            problem = "is not there yet"
            if path is not None:
                try:
                    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError as error:
                    busy = error.errno == errno.EBUSY
                    problem = "is held by another process" if busy else f"cannot be opened: {error}"
            if problem != said:
                log(f"port {name} {problem}")
                said = problem
            _wait_for_port_event(events)


def _open_uevents() -> socket.socket:
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT
    )
    events.settimeout(_LOOK_AGAIN_S)
    try:
        events.bind((0, _KERNEL_GROUP))
    except OSError as error:
        log(f"no kernel announcements ({error}): looking for ports every {_LOOK_AGAIN_S} s")
    return events


def _wait_for_port_event(events: socket.socket) -> None:
    while True:
        try:
            if b"virtio-ports" in events.recv(8192):
                return
        except OSError:  # timeout, or announcements lost: look again
            return
