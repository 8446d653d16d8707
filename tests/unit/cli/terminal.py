"""A command on a terminal of its own, as when somebody sits before it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping

from .commands import Command

COMMAND = (sys.executable, "-m", "liveclone")
PATIENCE_S = 30.0


OPEN: list[Terminal] = []


def close_all() -> None:
    """End what a failed test has left."""
    while OPEN:
        OPEN[-1].close()


class Terminal:
    """Run the command in a pseudo-terminal. `expect` what it shows, `type` at it, `end` it."""

    def __init__(self, environment: Mapping[str, str], *words: str, fresh: bool = True) -> None:
        """Start it; unless it is to be `fresh`, as commands.py does."""
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        environment = {**environment, "TERM": "xterm"}
        self.child: subprocess.Popen[bytes] | Command
        if fresh:
            self.child = subprocess.Popen(
                [*COMMAND, *words],
                env=environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        else:
            self.child = Command(
                environment, words, stdin=slave, stdout=slave, stderr=slave, on_terminal=True
            )
        self.slave = slave
        OPEN.append(self)
        self.shown = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until the pattern has been shown; what was before it is forgotten."""
        end = time.monotonic() + PATIENCE_S
        while True:
            match = re.search(pattern, self.shown)
            if match:
                self.shown = self.shown[match.end() :]
                return match
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} is not shown, but {self.shown!r}"
            self.shown += os.read(self.master, 4096)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.child.wait(PATIENCE_S)
        while select.select([self.master], [], [], 0)[0]:
            self.shown += os.read(self.master, 4096)
        self.close()
        return code

    def close(self) -> None:
        OPEN.remove(self)
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL)
            self.child.wait()
        for fd in (self.master, self.slave):
            os.close(fd)
