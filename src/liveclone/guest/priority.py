"""Let what a whole machine waits for go first.

A clone's processes all want to run when it wakes up, and each step of a new identity (the host name, the clock, a
signal to sshd) wakes more of them; a source's open connections stand still until its network card is back. So
the calls on that way run under SCHED_RR, from the reading of the request on, and so does our own start at boot
(measured: of 60,000 blocks of code that a waking clone had to translate before its first reply, 45,000 were
other programs'). Not `prepare`: the source serves its clients meanwhile. SCHED_RESET_ON_FORK keeps threads
and children from inheriting it.

Not by the unit's CPUSchedulingPolicy=: where the kernel refuses (RT_GROUP_SCHED), the unit would not start at
all. A nice value would not do: autogroups weigh sessions, and nice counts only within one.
"""

from __future__ import annotations

import os


def go_first() -> bool:
    """Let the calling thread run before all ordinary ones; False when the kernel refuses."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return False
    return True


def go_along() -> None:
    """Let the calling thread share with the others again."""
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass


def put_last(pid: int) -> None:
    """Let process `pid` run only when no other wants to."""
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        pass  # it has ended already, or the kernel refuses: then it takes its share


def put_back(pid: int) -> None:
    """Let process `pid` share with the others again."""
    try:
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass
