"""The programs that run in this guest, as /proc tells: what a check of the clone-safety scan needs to know of them.

Read once for a scan. What of a process cannot be read (it has ended meanwhile) is taken for empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator, Sequence

from .files import find_text

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, sched.h
_FLAGS, _START = 6, 19  # fields of proc_pid_stat(5) behind the name
_LIBRARY = re.compile(r"\S+ r.x. .* (/\S+)$")
_SERVICE = re.compile(r"([^/]+\.service)(?:/|$)")


class Program:
    """One process.

    Attributes:
        unit: its systemd service ("nginx.service"), "" for one that belongs to none.
        age_s: for how long it runs.
    """

    def __init__(self, folder: str, pid: int, stat: str, uptime_s: float) -> None:
        self._folder = folder
        self.pid = pid
        fields = stat.rpartition(")")[2].split()
        self.is_kernel = bool(int(fields[_FLAGS]) & _KERNEL_THREAD)
        self.name = stat.partition("(")[2].rpartition(")")[0]
        self.age_s = max(0.0, uptime_s - int(fields[_START]) / os.sysconf("SC_CLK_TCK"))
        self.cgroup = self._read("cgroup").strip().rpartition("\n")[2].split(":", 2)[-1]
        found = _SERVICE.findall(self.cgroup)
        self.unit: str = found[-1] if found else ""

    def __str__(self) -> str:
        where = f", {self.unit}" if self.unit else ""
        return f"{self.name} (pid {self.pid}{where})"

    def libraries(self) -> list[str]:
        """Return the file names of what it has mapped as code."""
        lines = (_LIBRARY.match(line) for line in self._read("maps").splitlines())
        return sorted({os.path.basename(line[1]) for line in lines if line})

    def environment(self) -> list[str]:
        """Return the names of its environment's variables that are not empty; never what they hold."""
        pairs = (item.partition("=") for item in self._read("environ").split("\0"))
        return sorted({name for name, _, value in pairs if value})

    def sockets(self) -> list[str]:
        """Return the inode numbers of its sockets."""
        found = []
        try:
            for fd in os.listdir(f"{self._folder}/fd"):
                target = os.readlink(f"{self._folder}/fd/{fd}")
                if target.startswith("socket:["):
                    found.append(target[8:-1])
        except OSError:
            pass
        return found

    def _read(self, name: str) -> str:
        try:
            return find_text(f"{self._folder}/{name}") or ""
        except OSError:
            return ""


def list_programs(root: str) -> list[Program]:
    """Return all processes but kernel threads and our own."""
    proc = os.path.join(root, "proc")
    uptime_s = float((find_text(f"{proc}/uptime") or "0").split()[0])
    found = []
    for name in sorted(filter(str.isdigit, os.listdir(proc)), key=int):
        try:
            stat = find_text(f"{proc}/{name}/stat")
            program = Program(f"{proc}/{name}", int(name), stat, uptime_s) if stat else None
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
        if program and not program.is_kernel and program.pid != os.getpid():
            found.append(program)
    return found


def signal_by_name(root: str, names: Sequence[str], number: int, known: Container[int] = ()) -> list[str]:
    """Send a signal to all processes with one of these names (comm, 15 characters); return the names that there were.

    Those `known` to have others are passed over: under emulation looking at all costs 15 ms.
    """
    found = set()
    for pid, name in _list_names(root, known):
        if name in names:
            found.add(name)
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it has just ended
    return sorted(found)


def find_others(root: str, names: Sequence[str]) -> set[int]:
    """Return the processes that have none of these names."""
    return {pid for pid, name in _list_names(root) if name not in names}


def _list_names(root: str, known: Container[int] = ()) -> Iterator[tuple[int, str]]:
    proc = os.path.join(root, "proc")
    for entry in os.listdir(proc):
        if entry.isdigit() and int(entry) not in known:
            try:
                yield int(entry), (find_text(f"{proc}/{entry}/comm") or "").rstrip("\n")
            except ProcessLookupError:  # it has just ended
                continue
