"""The calls exec_*: run commands for the host. What happens to one command is in `job`."""

from __future__ import annotations

import binascii
import os
import pwd
import signal
import threading
import time

from . import process
from .errors import CallError
from .job import Job
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_JOBS = 64
_LONGEST_WAIT_S = 3600.0


class Jobs:
    """The commands that the host has started and not yet closed."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, request: Request) -> dict[str, Any]:
        """Start a command. With a `job` of the host's own choosing, asking again starts no second one."""
        args = request.args
        argv = [str(part) for part in args.get("argv") or []]
        if not argv or any("\0" in part for part in argv):
            raise CallError("bad-request", "argv is empty, or holds a NUL")
        tty = bool(args.get("tty"))
        env, cwd, ids = _for_user(str(args.get("user") or ""), tty)
        env.update({str(key): str(value) for key, value in (args.get("env") or {}).items()})
        id = str(args.get("job") or os.urandom(8).hex())
        job = Job(argv, env, str(args.get("cwd") or "") or cwd, ids)
        with self._lock:
            if id in self._jobs:
                return {"job": id}
            if len(self._jobs) >= MOST_JOBS:
                raise CallError("busy", f"{MOST_JOBS} commands run or have not been closed")
            try:
                job.start(
                    tty=tty,
                    rows=int(args.get("rows") or 0),
                    cols=int(args.get("cols") or 0),
                    stdin=bool(args.get("stdin")),
                    on_end=lambda: self._forget(id, job),
                )
            except OSError as error:
                raise CallError("exec-failed", f"{argv[0]}: {error}") from error
            self._jobs[id] = job
        return {"job": id}

    def io(self, request: Request) -> dict[str, Any]:
        """Give input, take output; wait up to wait_s for something new."""
        args = request.args
        job = self._find(request)
        given = args.get("stdin") or {}
        offset = int(given.get("offset") or 0)
        data = binascii.a2b_base64(given.get("data") or "")
        eof = bool(args.get("eof"))
        if eof and not given:
            offset = -1
        out_from, err_from = int(args.get("stdout_from") or 0), int(args.get("stderr_from") or 0)
        wait_s = min(float(args.get("wait_s") or 0), _LONGEST_WAIT_S, request.remaining_s() * 0.9)
        end = time.monotonic() + wait_s
        with job.changed:
            while True:
                if offset < 0:
                    offset = job.input_end
                reached = job.give_input(offset, data, eof) if given or eof else job.input_end
                out, err = job.stdout.take(out_from), job.stderr.take(err_from)
                job.wake()  # there may be room to read into
                everything = out_from + len(out) == job.stdout.end and err_from + len(err) == job.stderr.end
                exit_code = job.exit_code if everything else None
                given_all = bool(given or eof) and reached >= offset + len(data)
                left = end - time.monotonic()
                if out or err or exit_code is not None or given_all or left <= 0:
                    break
                job.changed.wait(left)
        return {
            "stdout": {"offset": out_from, "data": _base64(out)},
            "stderr": {"offset": err_from, "data": _base64(err)},
            "exit_code": exit_code,
            "stdin_offset": reached,
            "stdin_open": job.input_open,
        }

    def signal(self, request: Request) -> dict[str, Any]:
        """Send a signal, by number or name, to the command's process group."""
        return {"sent": self._find(request).signal(_signal_number(request.args.get("signal")))}

    def resize(self, request: Request) -> dict[str, Any]:
        """Tell the command's terminal its new size."""
        self._find(request).resize(int(request.args.get("rows") or 0), int(request.args.get("cols") or 0))
        return {}

    def close(self, request: Request) -> dict[str, Any]:
        """Kill the command if it still runs, and forget it; nothing happens when it is not known."""
        with self._lock:
            job = self._jobs.pop(str(request.args.get("job")), None)
        if job is not None:
            job.close()
        return {}

    def count(self) -> int:
        """Return how many commands there are that the host has not closed."""
        with self._lock:
            return len(self._jobs)

    def orphan_all(self) -> None:
        """This machine has become a clone: those who started the commands talk to its source, not to us."""
        with self._lock:
            jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            job.orphan()

    def _find(self, request: Request) -> Job:
        id = str(request.args.get("job"))
        with self._lock:
            job = self._jobs.get(id)
        if job is None:
            raise CallError("no-job", f"there is no job {id!r}; it was closed, or ended too long ago")
        return job

    def _forget(self, id: str, job: Job) -> None:
        with self._lock:
            if self._jobs.get(id) is job:
                del self._jobs[id]


def _for_user(name: str, tty: bool) -> tuple[dict[str, str], str, tuple[int, int] | None]:
    """Return environment, home folder and, unless it is our own user, the numbers of `name` ("www-data", "33")."""
    try:
        if name.isdigit():
            entry = pwd.getpwuid(int(name))
        else:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise CallError("no-user", f"this guest has no user {name!r}") from None
    env = {
        "PATH": process.PATH,
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
        "LANG": "C.UTF-8",
    }
    if tty:
        env["TERM"] = "xterm-256color"
    home = entry.pw_dir if os.path.isdir(entry.pw_dir) else "/"
    return env, home, None if entry.pw_uid == os.geteuid() else (entry.pw_uid, entry.pw_gid)


def _signal_number(value: Any) -> int:
    try:
        if isinstance(value, int):
            return int(signal.Signals(value))
        name = str(value).upper()
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except (KeyError, ValueError):
        raise CallError("bad-request", f"there is no signal {value!r}") from None


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")
