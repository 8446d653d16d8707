"""Child processes: started in a group of their own, always waited for, killed as a group.

Programs of the user (commands, hooks) start through /bin/sh, which undoes what they must not inherit from us (the
protection from the out-of-memory killer), changes folder, takes the terminal and then becomes the program. That
needs no Python between fork and exec, which would not be safe beside our threads, and the shell already
knows 127 (not found) and 126 (cannot be run), and says so on stderr.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

_PREPARE = """\
{ echo 0 >/proc/self/oom_score_adj; } 2>/dev/null
cd -- "$1" || exit 126
[ -z "$2" ] || exec <>"$2" >&0 2>&0
shift 2
exec "$@"
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL_BYTES = 2048  # of a hook's or helper's output that an error message shows

_living: set[Child] = set()
_living_changed = threading.Condition()


class Child:
    """A started process, leader of its own session and process group. Whoever made it must wait()."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._lock = threading.Lock()  # between the end of the process and its number being free again
        with _living_changed:
            _living.add(self)

    def wait(self) -> int:
        """Wait for the end; return the exit code, 128 + signal where a signal ended it."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            code = self._popen.wait()
        with _living_changed:
            _living.discard(self)
            _living_changed.notify_all()
        return code if code >= 0 else 128 - code

    def signal_group(self, number: int) -> bool:
        """Send a signal to the process group; False when the process has ended."""
        with self._lock:
            if self._popen.returncode is not None:
                return False
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return False
            return True

    def kill(self) -> None:
        """End the process group at once."""
        self.signal_group(signal.SIGKILL)


def living() -> list[Child]:
    """Return the children that have not been waited for."""
    with _living_changed:
        return list(_living)


def wait_for_all(timeout_s: float) -> bool:
    """Wait until each child has been waited for by whoever made it; False when time is up."""
    with _living_changed:
        return _living_changed.wait_for(lambda: not _living, timeout_s)


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> Child:
    """Start a program of the system (ssh-keygen). Raises OSError when it cannot be started."""
    popen = subprocess.Popen(
        list(argv),
        env=dict(env) if env is not None else {"PATH": PATH, "LANG": "C.UTF-8"},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd="/",
        start_new_session=True,
    )
    return Child(popen)


def start_for_user(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str = "/",
    tty: str = "",
    ids: tuple[int, int] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> Child:
    """Start a program of the user's: a command or a hook.

    Args:
        tty: path of a terminal to take as controlling terminal and as all three streams.
        ids: user and group number to become, with that user's supplementary groups.
    """
    become = []
    if ids is not None:
        become = ["setpriv", f"--reuid={ids[0]}", f"--regid={ids[1]}", "--init-groups", "--"]
    line = [*become, "/bin/sh", "-c", _PREPARE, "sh", cwd, tty, *argv]
    if become:  # its own search path, whatever the command's is
        line[0] = next((p for p in ("/usr/bin/setpriv", "/bin/setpriv") if os.path.exists(p)), line[0])
    return start(line, env=env, stdin=stdin, stdout=stdout, stderr=stderr)


class Output:
    """Collects what a child writes, without a pipe, so that a daemon it leaves behind cannot hold us."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("liveclone-output", os.MFD_CLOEXEC)

    def tail(self) -> str:
        """Return the last of what was written, and close."""
        try:
            size = os.fstat(self.fd).st_size
            start_at = max(0, size - _TAIL_BYTES)
            return os.pread(self.fd, _TAIL_BYTES, start_at).decode("utf-8", "replace").strip()
        finally:
            os.close(self.fd)
