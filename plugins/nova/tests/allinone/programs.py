"""The processes of the cloud: each in the network and among the processes of a libvirtd of our own, with a log of its own.

    run            to its end                                 database migrations
    start          and go on                                  what listens already, or is asked through another one
    start_telling  and wait until it says that it is ready    sd_notify(3)

Nothing here ends all of them: libvirtd's `stop` does, and it knows them by where they are, also those that these start.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.libvirtd import Libvirtd

PATIENCE_S = 120.0
# Programs of this Python, then the system's, of which some are root's.
_PATH = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
)
_END_OF_LOG = 3000


class Programs:
    """Those of one cloud, or of a host of it."""

    def __init__(self, libvirtd: Libvirtd, folder: Path) -> None:
        """Plan to start programs beside that libvirtd, once it runs; their logs will be in folder/log."""
        self._libvirtd, self._folder = libvirtd, folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.log, self._scratch = folder / "log", folder / "tmp"
        self.log.mkdir(exist_ok=True)
        self._scratch.mkdir(exist_ok=True)

    def run(self, name: str, *words: str | Path, **environment: str | Path) -> None:
        """Run a program to its end.

        Raises:
            AssertionError: it failed; with the end of what it said.
        """
        status = self.start(name, *words, fds=(), **environment).wait(PATIENCE_S)
        assert status == 0, self._describe(name, f"ended with {status}")

    def start(
        self, name: str, *words: str | Path, fds: Sequence[int] = (), **environment: str | Path | int
    ) -> subprocess.Popen[bytes]:
        """Start a program; what it says goes to log/NAME.log. It inherits these descriptors."""
        with (self.log / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._libvirtd.inside, *words],
                # A home of its own: caches, and what Erlang's programs know each other by. Neutron leaves files in /tmp.
                env=os.environ
                | {"PATH": _PATH, "HOME": str(self._folder), "TMPDIR": str(self._scratch), "no_proxy": "*"}
                | {key: str(value) for key, value in environment.items()},
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_telling(
        self, name: str, *words: str | Path, **environment: str | Path | int
    ) -> subprocess.Popen[bytes]:
        """Start a program and wait until it says that it is ready.

        Raises:
            AssertionError: it ended, or took too long; with the end of what it said.
        """
        path = self._folder / f"{name}.notices"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(str(path))
            process = self.start(name, *words, fds=(), NOTIFY_SOCKET=path, **environment)
            end = os.pidfd_open(process.pid)
            try:
                notice = b""
                while b"READY=1" not in notice:
                    heard = select.select([notices.fileno(), end], [], [], PATIENCE_S)[0]
                    assert heard, self._describe(name, "does not say that it is ready")
                    assert notices.fileno() in heard, self._describe(name, f"ended with {process.wait()}")
                    notice = notices.recv(4096)
            finally:
                os.close(end)
                path.unlink()
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End one with all that it has started, as the kernel's out-of-memory killer would."""
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
        process.wait(PATIENCE_S)

    def reap(self) -> None:
        """Take note that all have been ended by somebody else."""
        for process in self._started:
            process.wait(PATIENCE_S)

    def _describe(self, name: str, what: str) -> str:
        return f"{name} {what}\n{(self.log / f'{name}.log').read_text(errors='replace')[-_END_OF_LOG:]}"
