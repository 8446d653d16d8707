"""Commands in processes of their own, forked off one that has imported all they need.

    test ── words, environment, streams ──> server ── fork ──> the command: main() with these
         <── pid, then how it ended ──────

To start Python and import the engine costs 0.2 s of processor time, a fork a tenth of that. What was forked has its own
streams, signals, session and terminal, and ends as Python ends. Only how Python starts cannot be seen with it.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import IO, Any

from liveclone.cli.main import build_app, main

SOURCE = Path(__file__).resolve().parents[3] / "src"
PATIENCE_S = 60.0
_NUMBER = struct.Struct("i")
_PRELOAD = ("liveclone.cli", "liveclone.engine", "liveclone.drivers.fake", "liveclone.store")


class Command:
    """A command that was started; used as a `subprocess.Popen` of bytes whose pipes have no buffer."""

    def __init__(
        self,
        environment: Mapping[str, str],
        words: tuple[str, ...],
        *,
        stdin: int | IO[bytes] = subprocess.PIPE,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        on_terminal: bool = False,
    ) -> None:
        """Start it. With `on_terminal` it is in a session of its own, whose terminal is `stdin`."""
        self.returncode: int | None = None
        self.stdin, given_in = _open(stdin, for_reading=True)
        self.stdout, given_out = _open(stdout)
        self.stderr, given_err = _open(stderr)
        given = given_in, given_out, given_err
        self._report, report = os.pipe()
        job = {"words": words, "environment": dict(environment), "on_terminal": on_terminal}
        socket.send_fds(_find_server(), [json.dumps(job).encode()], [*given, report])
        os.close(report)
        for fd, stream in zip(given, (stdin, stdout, stderr), strict=True):
            if stream in (subprocess.PIPE, subprocess.DEVNULL):
                os.close(fd)
        (self.pid,) = _NUMBER.unpack(os.read(self._report, _NUMBER.size))

    def poll(self) -> int | None:
        """Return how it ended, as a Popen would; None while it runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            (self.returncode,) = _NUMBER.unpack(os.read(self._report, _NUMBER.size))
            os.close(self._report)
        return self.returncode

    def wait(self, timeout: float = PATIENCE_S) -> int:
        if self.returncode is None:
            assert select.select([self._report], [], [], timeout)[0], f"{self.pid} does not end"
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: bytes | None = None, timeout: float = PATIENCE_S) -> tuple[bytes, bytes]:
        """Give it all input, read all output, wait for its end."""
        end = time.monotonic() + timeout
        rest = memoryview(given or b"")
        read: dict[IO[bytes], bytearray] = {}
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None and not self.stdin.closed:
                os.set_blocking(self.stdin.fileno(), False)
                selector.register(self.stdin, selectors.EVENT_WRITE, self.stdin)
            for told in (self.stdout, self.stderr):
                if told is not None and not told.closed:
                    read[told] = bytearray()
                    selector.register(told, selectors.EVENT_READ, told)
            while selector.get_map():
                ready = selector.select(max(0.0, end - time.monotonic()))
                assert ready, f"{self.pid} does not end its output"
                for key, _ in ready:
                    stream: IO[bytes] = key.data
                    if stream is self.stdin:
                        with suppress(BlockingIOError):
                            try:
                                rest = rest[os.write(key.fd, rest) if rest else 0 :]
                            except BrokenPipeError:
                                rest = rest[:0]
                        more = bool(rest)
                    else:
                        data = os.read(key.fd, 1 << 16)
                        read[stream] += data
                        more = bool(data)
                    if not more:
                        selector.unregister(stream)
                        stream.close()
        self.wait(max(0.0, end - time.monotonic()))
        out, err = (bytes(read.get(told, b"")) if told else b"" for told in (self.stdout, self.stderr))
        return out, err


def _open(stream: int | IO[bytes], *, for_reading: bool = False) -> tuple[IO[bytes] | None, int]:
    """Return our end of a stream, if it has one, and the command's."""
    if stream == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    if stream != subprocess.PIPE:
        return None, stream if isinstance(stream, int) else stream.fileno()
    read_end, write_end = os.pipe()
    if for_reading:
        return os.fdopen(write_end, "wb", buffering=0), read_end
    return os.fdopen(read_end, "rb", buffering=0), write_end


# ---------------------------------------------------------------------- the server

_running: tuple[socket.socket, subprocess.Popen[bytes]] | None = None


def _find_server() -> socket.socket:
    global _running
    if _running is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # One thread: what forks must have no other. A session of its own: ctrl-C is for the tests.
            child = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=SOURCE.parent,
                env=os.environ | {"PYTHONPATH": str(SOURCE), "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        _running = ours, child
    return _running[0]


def stop_server() -> None:
    """End the server, if there is one, when all commands have ended."""
    global _running
    if _running is not None:
        ours, child = _running
        _running = None
        ours.close()
        child.wait(PATIENCE_S)


def serve(jobs: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Start commands until nobody asks any more. Returns in a command, with its job and its streams."""
    for name in _PRELOAD:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    with suppress(SystemExit), redirect_stderr(StringIO()):
        build_app(completion=False)(
            ["exec", "nobody"]
        )  # imports what reads a command line, and finds it too short
    importlib.import_module("rich.table")
    gc.freeze()
    running: dict[int, tuple[int, int]] = {}
    while True:
        ready, _, _ = select.select([jobs.fileno(), *running], [], [])
        for pidfd in set(ready) & set(running):
            pid, report = running.pop(pidfd)
            _, status = os.waitpid(pid, 0)
            with suppress(BrokenPipeError):
                os.write(report, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(report)
            os.close(pidfd)
        if jobs.fileno() not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(jobs, 1 << 20, 4)
        if not data:
            sys.exit()
        *streams, report = fds
        pid = os.fork()
        if pid == 0:
            jobs.close()
            for fd in (report, *running, *(other for _, other in running.values())):
                os.close(fd)
            return json.loads(data), streams
        os.write(report, _NUMBER.pack(pid))
        running[os.pidfd_open(pid)] = pid, report
        for fd in streams:
            os.close(fd)


def become(job: dict[str, Any], streams: list[int]) -> None:
    """Let this process be the command that was asked for."""
    if job["on_terminal"]:
        os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    for fd in streams:
        os.close(fd)
    if job["on_terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.environ.clear()
    os.environ.update(job["environment"])
    importlib.reload(importlib.import_module("liveclone.trace"))
    sys.argv = ["liveclone", *job["words"]]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


if __name__ == "__main__":
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    main()
