"""What a process gets of the host's processors beside others.

A nice value is a thread's own, and where the kernel shares between sessions (autogroup, sched(7)) it counts only within
one: there the session has a nice value too. What is set here is both, for processes that lead a session of their own.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from ..model.machine import ProcessRef
from . import process as processes

_LAST = 19  # 15 shares to an ordinary process's 1024
_SOME = 10  # 110 shares
_ORDINARY = 0  # of a session that nobody has touched
_MAY_RETURN = 20  # of RLIMIT_NICE: up to 0, getrlimit(2)


def give_way() -> None:
    """Let this process, the leader of its session, have a tenth of what others have where there is too little for all."""
    os.nice(_SOME - os.nice(0))
    with contextlib.suppress(OSError):  # a kernel without
        Path("/proc/self/autogroup").write_text(str(_SOME))


def may_put_back() -> bool:
    """Tell whether we may undo `put_last`: anybody may be put last, but to come back takes a right."""
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= _MAY_RETURN


def put_last(process: ProcessRef) -> None:
    """Let all threads of a process have what others leave, next to nothing where these want it all."""
    _set(process, _ours(), _LAST)


def put_back(process: ProcessRef) -> None:
    """Undo `put_last`: it gets what we have; what somebody else has set stays. May be called at any time."""
    _set(process, _LAST, _ours())


def is_last(process: ProcessRef) -> bool:
    """Tell whether a process is where `put_last` put it."""
    try:
        return processes.is_alive(process) and os.getpriority(os.PRIO_PROCESS, process.pid) == _LAST
    except ProcessLookupError:
        return False


def _ours() -> int:
    """Return our own nice value, which a process that we started had at first."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def _set(process: ProcessRef, old: int, new: int) -> None:
    """Give `new` to each thread that has `old`, until none is left: those that come meanwhile may have it, too."""
    if old == new or not processes.is_alive(process):
        return
    _set_session(process, *((_LAST, _ORDINARY) if old == _LAST else (_ORDINARY, _LAST)))
    while True:
        found = False
        try:
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                if os.getpriority(os.PRIO_PROCESS, int(thread.name)) == old:
                    os.setpriority(os.PRIO_PROCESS, int(thread.name), new)
                    found = True
        except (FileNotFoundError, PermissionError):
            return  # it has ended, or is another user's
        except ProcessLookupError:
            found = True  # one thread has ended: look again
        if not found:
            return


def _set_session(process: ProcessRef, old: int, new: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or the kernel has no autogroups
        group = Path(f"/proc/{process.pid}/autogroup")
        if os.getsid(process.pid) == process.pid and int(group.read_text().split()[-1]) == old:
            group.write_text(str(new))
