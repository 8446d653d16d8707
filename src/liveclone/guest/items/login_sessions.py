"""Logins: who is logged in to the source is not logged in to the clone. Each is ended as if its line had been cut.

    sshd's process of a connection    killed: its terminals hang up; forwarded agents, ports and displays are gone
    login on a console                killed, its terminal hung up; systemd lets getty ask for a name again
    leader of a session of logind     killed, if the session is a user's (a desktop, cockpit)

As with a line that was cut, the shell and what it runs in this terminal get SIGHUP, and what had left it lives on
(nohup, setsid, tmux, services): that may be the very work that makes the clone warm. The host's own commands
(`liveclone exec`) are no logins, nor are the agent and services. The source keeps all of its logins.

They are killed rather than asked: no code of theirs runs in the clone any more. What they would have told others, logind
sees by itself, and we write into utmp. The history (wtmp) is the source's and stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from . import Details, Observed

_KEEPERS = ("login", "sshd-session", "sshd-auth")
_SESSIONS = "/run/systemd/sessions"
_CONSOLES = ("/dev/tty", "/dev/hvc", "/dev/console")
_UTMP = "/run/utmp"
_ENTRY = 384  # bytes of one entry, utmp(5)
_HEAD = struct.Struct("=hxxi")  # type, process
_USER_TO_EXIT = slice(44, 332)  # name and host
_USER_PROCESS, _DEAD_PROCESS = 7, 8


class LoginSessions(Item):
    name = "login_sessions"
    configured = True

    def __init__(self) -> None:
        self._threads: frozenset[int] = frozenset()  # the kernel's own, at the last look

    def observe(self, ctx: Context) -> Observed:
        return b"", {}

    def reset(self, ctx: Context) -> Details:
        keepers = find_keepers(ctx, self._threads)
        consoles = {_find_console(ctx, pid) for pid in keepers} - {""}
        for pid in keepers:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        for console in consoles:
            ctx.kernel.hang_up(console)
        _log_out(ctx, keepers)
        return {"killed": str(len(keepers))}

    def warm(self, ctx: Context) -> None:
        # Three of four entries of /proc. One that ends leaves its number unused for tens of thousands of new processes.
        self._threads = frozenset(pid for pid in _find_processes(ctx) if _is_kernel_thread(ctx, pid))


def find_keepers(ctx: Context, others: Container[int] = ()) -> set[int]:
    """Return the processes that logins stand on; `others` are known to be none."""
    found = set()
    for pid in _find_processes(ctx):
        if pid in others:
            continue
        name = _read(ctx, f"/proc/{pid}/comm").strip()
        if name in _KEEPERS or (name == "sshd" and _is_connection(ctx, pid)):
            found.add(pid)
    for session in _list(ctx, _SESSIONS):
        if session.endswith(
            ".ref"
        ):  # a pipe; the others are texts (sd-login's own, and stable for ten years)
            continue
        lines = _read(ctx, f"{_SESSIONS}/{session}").splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        leader, scope = told.get("LEADER", ""), told.get("SCOPE", "")
        # The number of a leader that is long gone may be another program's, which is not in its scope then.
        if (
            told.get("CLASS", "").startswith("user")
            and scope
            and scope in _read(ctx, f"/proc/{leader}/cgroup")
        ):
            found.add(int(leader))
    return found


def _is_kernel_thread(ctx: Context, pid: int) -> bool:
    """Tell by its parent, kthreadd: fields of proc_pid_stat(5) behind the name are state, parent."""
    return _read(ctx, f"/proc/{pid}/stat").rpartition(")")[2].split()[1:2] == ["2"]


def _is_connection(ctx: Context, pid: int) -> bool:
    """Tell sshd's process of a connection from the one that listens: before OpenSSH 9.8 both have one name."""
    title = _read(ctx, f"/proc/{pid}/cmdline")
    return title.startswith("sshd: ") and "[listener]" not in title


def _find_console(ctx: Context, pid: int) -> str:
    """Return the terminal that a process has its input from; "" for none, or one that ends with the process (a pty)."""
    try:
        name = os.readlink(ctx.path(f"/proc/{pid}/fd/0"))
    except OSError:
        return ""
    return name if name.startswith(_CONSOLES) else ""


def _find_processes(ctx: Context) -> list[int]:
    return [int(name) for name in _list(ctx, "/proc") if name.isdigit()]


def _list(ctx: Context, folder: str) -> list[str]:
    try:
        return os.listdir(ctx.path(folder))
    except FileNotFoundError:
        return []


def _read(ctx: Context, name: str) -> str:
    try:
        return files.find_text(ctx.path(name)) or ""
    except OSError:  # the process ended between listing and reading (ESRCH)
        return ""


def _log_out(ctx: Context, ended: Container[int]) -> None:
    """Let utmp say that those who `ended`, or had ended before, are gone; under the lock that pututxline(3) takes."""
    path = ctx.path(_UTMP)
    if not os.path.exists(path):  # Debian 13 has none any more
        return
    with open(path, "r+b", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        data = file.read()
        for start in range(0, len(data) - _ENTRY + 1, _ENTRY):
            kind, pid = _HEAD.unpack_from(data, start)
            if kind == _USER_PROCESS and (pid in ended or not os.path.exists(ctx.path(f"/proc/{pid}"))):
                entry = bytearray(data[start : start + _ENTRY])
                _HEAD.pack_into(entry, 0, _DEAD_PROCESS, pid)
                entry[_USER_TO_EXIT] = bytes(len(entry[_USER_TO_EXIT]))
                os.pwrite(file.fileno(), entry, start)


ITEM = LoginSessions
