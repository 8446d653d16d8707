"""Let what a whole machine waits for go first.

A clone's processes all want to run when it wakes up, and each step of a new identity (the host name, the clock, a
signal to sshd) wakes more of them. So calls that the host names urgent run under SCHED_RR, from the reading
of the request on, and so does our own start at boot (measured: of 60,000 blocks of code that a waking clone
had to translate before its first reply, 45,000 were other programs'). No call to a source is urgent: it serves its
clients meanwhile. SCHED_RESET_ON_FORK keeps threads and children from inheriting it.

Not by the unit's CPUSchedulingPolicy=: where the kernel refuses (RT_GROUP_SCHED), the unit would not start at
all. A nice value would not do: autogroups weigh sessions, and nice counts only within one.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, sched.h
_FLAGS, _THREADS, _POLICY = 6, 17, 38  # fields of proc_pid_stat(5) behind the name
# Names (comm, 15 characters) of what follows every card that comes and goes, and serves nobody outside.
HOUSEKEEPING = frozenset(
    {
        *(
            "systemd",
            "systemd-udevd",
            "(udev-worker)",
            "systemd-journal",
            "systemd-logind",
            "systemd-network",
        ),
        *("systemd-resolve", "systemd-timesyn", "dbus-daemon", "dbus-broker", "dbus-broker-lau", "rsyslogd"),
        *("NetworkManager", "nm-dispatcher"),
    }
)


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


class Others:
    """The other programs of the guest: they may run when nobody else wants to, while a clone becomes a machine of its own.

    Waking up, a clone's services note the new time and the new card; its kernel, which has that card to set up, would
    get one share among a dozen (measured: half of the time from the card's plugging to its address).

    A source loses its card and gets it back: there only the system's housekeeping waits, for three seconds, so that what
    the source serves goes on (ADR 9).
    """

    def __init__(self, root: str) -> None:
        self._proc = os.path.join(root, "proc")
        self._threads: list[tuple[int, int, str]] = []  # number, number and name of its process
        self._waiting: list[int] = []
        self._last_anyway: set[int] = set()

    def look(self) -> None:
        """Note who there is: before a snapshot, since its clones have better things to do.

        Who waits still, of a snapshot shortly before, is no longer: else that would be taken for its own choice.
        """
        self.put_back()
        self._threads = [thread for name in self._list_processes() for thread in self._find_threads(name)]
        self._last_anyway = self._find_last()

    def _list_processes(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._proc) if name.isdigit()]
        except FileNotFoundError:
            return []

    def _find_last(self) -> set[int]:
        """Return the threads that are last now."""
        found = set()
        for name in self._list_processes():
            try:
                for thread in os.listdir(f"{self._proc}/{name}/task"):
                    if os.sched_getscheduler(int(thread)) & ~os.SCHED_RESET_ON_FORK == os.SCHED_IDLE:
                        found.add(int(thread))
            except OSError:
                pass  # it has just ended
        return found

    def _find_threads(self, pid: str) -> list[tuple[int, int, str]]:
        try:
            with open(f"{self._proc}/{pid}/stat", encoding="utf-8", errors="replace") as file:
                name, _, rest = file.read().rpartition(")")
            fields = rest.split()
            ordinary = int(fields[_POLICY]) == os.SCHED_OTHER and not int(fields[_FLAGS]) & _KERNEL_THREAD
            if not ordinary or int(pid) == os.getpid():
                return []
            threads = os.listdir(f"{self._proc}/{pid}/task") if fields[_THREADS] != "1" else [pid]
        except (OSError, ValueError, IndexError):  # it has just ended
            return []
        return [(int(thread), int(pid), name.partition("(")[2]) for thread in threads]

    def put_last(self, *, housekeeping: bool = False, but: Container[int] = ()) -> None:
        """Let all of them wait, or only the `housekeeping` of the system; `but` holds processes that shall not."""
        for thread, pid, name in self._threads:
            if pid in but or (housekeeping and name not in HOUSEKEEPING):
                continue
            try:
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
                self._waiting.append(thread)
            except OSError:
                pass  # it has ended, or the kernel refuses

    def put_back(self) -> None:
        """Let all that wait go on as they were, and what they have begun meanwhile.

        A child inherits the last place: SCHED_RESET_ON_FORK takes away real-time and nice values alone
        (sched_fork() in kernel/sched/core.c).
        """
        waiting, self._waiting = set(self._waiting), []
        done = set(self._last_anyway)
        while waiting:
            for thread in waiting:
                put_back(thread)
            done |= waiting
            waiting = self._find_last() - done
