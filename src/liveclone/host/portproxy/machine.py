"""The machine whose end is ours: its process, and where its successor would be written down.

The pidfd of the machine's process fires, the manifest is read, and when another live process stands there (a handover),
that one is watched from now on. As the manifest may be written a moment after the old process has gone, the same dead
process there means: look again, for GRACE_S.
"""

from __future__ import annotations

import os
import select
import time

from .log import log

GRACE_S = 5.0
LOOK_EVERY_S = 0.05
_MANIFEST_MAX = 1 << 20


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
            log(f"{self.manifest} cannot be read: {error!r}")
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


class Watch:
    """Watches the machine's process through the loop's `poller`, and looks for a successor when it has gone."""

    def __init__(self, machine: Machine, poller: select.epoll) -> None:
        self.machine = machine
        self.poller = poller
        self.pidfd = -1
        self.look_at: float | None = None  # when to look into the manifest; None: the process runs
        self.look_until = 0.0
        if not self._begin():
            self._look_from_now()

    def _begin(self) -> bool:
        fd = self.machine.open_pidfd()
        if fd is None:
            return False
        self.pidfd = fd
        self.look_at = None
        self.poller.register(fd, select.EPOLLIN)
        return True

    def process_ended(self) -> None:
        """Let go of the process whose pidfd has fired."""
        self.poller.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        self._look_from_now()

    def _look_from_now(self) -> None:
        self.look_until = time.monotonic() + GRACE_S
        self.look_at = 0.0

    def look(self, now: float) -> bool:
        """Look for the machine's process in its manifest, if it is time to; False when the machine has ended."""
        if self.look_at is None or self.look_at > now:
            return True
        if not self.machine.read_successor():
            return False
        if self._begin():
            log(f"watching process {self.machine.process[0]}")
            return True
        self.look_at = now + LOOK_EVERY_S
        return now < self.look_until
