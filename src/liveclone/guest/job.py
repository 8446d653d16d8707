"""One command of the host: its process, its streams, and what has been read of them.

    host ── stdin bytes by offset ──> [input, ≤ 1 MiB] ──pump──> pipe or terminal ──> process
    host <── bytes from an offset ──  [stdout, stderr, ≤ 1 MiB each] <──pump── pipes or terminal

Every byte has an offset in its stream, so a request whose reply was lost is simply asked again: asking for output
"from N" says that all before N has arrived and may be forgotten; input at an offset that is known is not taken
twice. A full buffer is not read into, so the pipe fills and the process waits (back-pressure). Two threads a
job, both asleep unless something happens: the pump, and one that waits for the process.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable

from . import process
from .errors import CallError, log_exception
from .stream import BUFFER_BYTES, Stream

LINGER_S = 600.0  # how long a finished job may still be asked for
_CHUNK = 64 * 1024
_PIPE_BYTES = 64 * 1024  # a pipe or terminal holds: all that can be left in it when the process has ended
_TERMINAL_AGAIN_MS = 50  # a terminal that nobody has open is looked at again: nothing tells of its opening
_END_OF_TYPING = b"\x04"  # what a terminal's user types to end the input


class Job:
    """A running or finished command. close() it."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str, ids: tuple[int, int] | None) -> None:
        self.changed = threading.Condition()
        self.stdout = Stream()
        self.stderr = Stream()
        self.exit_code: int | None = None  # set once all output has been read too
        self.orphaned = False
        self._argv, self._env, self._cwd, self._ids = argv, env, cwd, ids
        self._input = bytearray()
        self._input_end = 0  # offset behind the last byte taken from the host
        self._input_eof = False
        self._code: int | None = None
        self._tty = False
        self._late_bytes = 0  # read after the end of the process
        self._in_fd = self._out_fd = self._err_fd = -1
        self._wake_read = self._wake_write = -1

    def start(self, *, tty: bool, rows: int, cols: int, stdin: bool, on_end: Callable[[], None]) -> None:
        """Start the process; `on_end` is called when the job has ended and is closed, or not asked for any more.

        Raises OSError with nothing left behind.
        """
        self._tty = tty
        self._on_end = on_end
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if tty:
                self._child = self._start_on_terminal(rows, cols)
            else:
                self._child = self._start_on_pipes(stdin)
        except BaseException:
            self._close_streams()
            self._close_wake()
            raise
        threading.Thread(target=self._wait, daemon=True).start()
        threading.Thread(target=self._pump, daemon=True).start()

    def _start_on_pipes(self, stdin: bool) -> process.Child:
        theirs = []
        try:
            in_fd = subprocess.DEVNULL
            if stdin:
                in_fd, self._in_fd = os.pipe2(os.O_CLOEXEC)
                theirs.append(in_fd)
                os.set_blocking(self._in_fd, False)
            self._out_fd, out_fd = os.pipe2(os.O_CLOEXEC)
            theirs.append(out_fd)
            self._err_fd, err_fd = os.pipe2(os.O_CLOEXEC)
            theirs.append(err_fd)
            os.set_blocking(self._out_fd, False)
            os.set_blocking(self._err_fd, False)
            return process.start_for_user(
                self._argv,
                env=self._env,
                cwd=self._cwd,
                ids=self._ids,
                stdin=in_fd,
                stdout=out_fd,
                stderr=err_fd,
            )
        finally:
            for fd in theirs:
                os.close(fd)

    def _start_on_terminal(self, rows: int, cols: int) -> process.Child:
        master, slave = os.openpty()
        try:
            self._out_fd = self._in_fd = master
            os.set_blocking(master, False)
            _set_size(master, rows, cols)
            if self._ids is not None:
                os.fchown(slave, self._ids[0], -1)
            return process.start_for_user(
                self._argv,
                env=self._env,
                cwd=self._cwd,
                ids=self._ids,
                tty=os.ttyname(slave),
                stdin=slave,
                stdout=slave,
                stderr=slave,
            )
        finally:
            os.close(slave)

    # what the host asks for; each wakes the pump if it gave it something to do

    def give_input(self, offset: int, data: bytes, eof: bool) -> int:
        """Take input as far as there is room, skipping what was taken before; return the offset reached."""
        with self.changed:
            if offset > self._input_end:
                raise CallError("bad-offset", f"stdin offset {offset} lies behind {self._input_end}")
            fresh = data[self._input_end - offset :]
            if self._in_fd < 0 or self._input_eof:  # nobody reads it; that is no error
                self._input_end += len(fresh)
            else:
                fresh = fresh[: BUFFER_BYTES - len(self._input)]
                self._input += fresh
                self._input_end += len(fresh)
                if eof and self._input_end >= offset + len(data):
                    self._input_eof = True
                    if self._tty:
                        self._input += _END_OF_TYPING
            self.wake()
            return self._input_end

    @property
    def input_end(self) -> int:
        """Offset behind the last byte taken from the host."""
        return self._input_end

    @property
    def input_open(self) -> bool:
        return self._in_fd >= 0 and not self._input_eof

    def signal(self, number: int) -> bool:
        """Send a signal to the process group; False when it has ended."""
        return self._child.signal_group(number)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal its new size."""
        with self.changed:
            if not self._tty:
                raise CallError("no-tty", "this job has no terminal")
            if self._out_fd >= 0:
                _set_size(self._out_fd, rows, cols)

    def orphan(self) -> None:
        """Nobody will ask again: drop all output, so that the process never waits for us; its input ends."""
        with self.changed:
            self.orphaned = True
            self.stdout.forget()
            self.stderr.forget()
            self._input_eof = True
            self.changed.notify_all()
            self.wake()

    def close(self) -> None:
        """Kill the process group if it runs, and let everything go."""
        self.signal(signal.SIGKILL)
        self.orphan()

    def wake(self) -> None:
        """Let the pump look again. The caller holds `changed`: the descriptor may be closed under no one's hands."""
        if self._wake_write >= 0:
            try:
                os.write(self._wake_write, b".")
            except BlockingIOError:
                pass  # it has more than enough wake-ups

    # the threads

    def _wait(self) -> None:
        code = self._child.wait()
        with self.changed:
            self._code = code
            self.changed.notify_all()
            self.wake()

    def _pump(self) -> None:
        try:
            while self._pump_once():
                pass
        except Exception:  # the edge of a thread
            log_exception("moving a job's bytes")
            self._child.kill()
        with self.changed:
            self._close_streams()
            while self._code is None:
                self.changed.wait()
            self.exit_code = self._code
            self._close_wake()
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.orphaned, LINGER_S)
        self._on_end()

    def _pump_once(self) -> bool:
        """Move what can be moved, then sleep; False when the process has ended and all its output is here."""
        poll = select.poll()
        timeout_ms = None
        with self.changed:
            ended = self._code is not None  # asked before reading: what it wrote last is then in the pipe
            moved = self._write_input()
            drained = True
            for name, stream in (("_out_fd", self.stdout), ("_err_fd", self.stderr)):
                fd = getattr(self, name)
                if fd < 0:
                    continue
                got = self._read_output(fd, stream, ended)
                if got is None and self._tty and not ended:
                    # Nobody has the terminal open just now: a program that is about to exit, or one that will open it
                    # again. Closing our end would send SIGHUP to it; polling it would spin on POLLHUP.
                    timeout_ms = _TERMINAL_AGAIN_MS
                    continue
                if got is None:
                    self._close_output(name)
                    continue
                moved = moved or got
                drained = drained and not got and not stream.full
                if not stream.full:
                    poll.register(fd, select.POLLIN)
            if moved:
                self.changed.notify_all()
            # What the process wrote itself was in the pipes when it ended; a descendant may go on for ever.
            if ended and (drained or self._late_bytes >= 2 * _PIPE_BYTES):
                return False
            if self._in_fd >= 0 and self._input and timeout_ms is None:
                both = self._in_fd == self._out_fd and not self.stdout.full
                poll.register(self._in_fd, select.POLLOUT | (select.POLLIN if both else 0))
        poll.register(self._wake_read, select.POLLIN)
        if not moved:
            poll.poll(timeout_ms)
        _drain(self._wake_read)
        return True

    def _read_output(self, fd: int, stream: Stream, late: bool) -> bool | None:
        """Read once; True: got some, False: nothing now, None: it has ended."""
        if stream.full:
            return False
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the terminal's last user is gone
            return None
        if not data:
            return None
        if late:
            self._late_bytes += len(data)
        if not self.orphaned:
            stream.append(data)
        return True

    def _write_input(self) -> bool:
        if self._in_fd < 0:
            return False
        moved = False
        if self._input:
            try:
                sent = os.write(self._in_fd, self._input[:_CHUNK])
                del self._input[:sent]
                moved = True
            except BlockingIOError:
                pass
            except OSError:  # EPIPE: it has closed its input; the rest has no reader
                self._input.clear()
                self._input_eof = moved = True
        if self._input_eof and not self._input and not self._tty:
            os.close(self._in_fd)
            self._in_fd = -1
        return moved

    def _close_output(self, name: str) -> None:
        fd = getattr(self, name)
        if fd == self._in_fd:
            self._in_fd = -1
        setattr(self, name, -1)
        os.close(fd)

    def _close_streams(self) -> None:
        for fd in {self._in_fd, self._out_fd, self._err_fd} - {-1}:
            os.close(fd)
        self._in_fd = self._out_fd = self._err_fd = -1

    def _close_wake(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._wake_read = self._wake_write = -1


def _drain(fd: int) -> None:
    try:
        while len(os.read(fd, 4096)) == 4096:
            pass
    except BlockingIOError:
        pass


def _set_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows or 24, cols or 80, 0, 0))
