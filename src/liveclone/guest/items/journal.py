"""systemd's journal: journald learns machine-id and boot id when it starts, and writes below the machine-id's name.

    /var/log/journal/OLD/    the source's records, as it wrote them; they stay (`journalctl --merge` shows them)
    /var/log/journal/NEW/    what this machine writes, from journald's new start on

So journald is ended and systemd starts it again; what programs write meanwhile waits in sockets that systemd holds. That
takes a third of a second of processor time under emulation and is done when the clone has its network. Until then the item
is `pending`, and as long as journald writes under another name than the machine's, there is no value to compare. Its
records are numbered anew, since it gives each number once under an id that two machines must not share.

The old records keep the old name because they tell of the source. NOT HANDLED: journald limits the space of its own
folder only, so those of the sources stay until somebody removes them; and journals of a namespace (LogNamespace=).
"""

from __future__ import annotations

import os
import signal

from .. import files
from ..context import Context
from ..errors import log
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_UNIT = "system.slice/systemd-journald.service/cgroup.procs"
_CGROUPS = (
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/systemd",
)  # unified; the older kind, with a hierarchy of systemd's own
_STORAGES = ("/var/log/journal/", "/run/log/journal/")
_MACHINE_ID = "/etc/machine-id"
_NUMBERS = "/run/systemd/journal/seqnum"


class Journal(Item):
    name = "journal"
    required = False  # nothing can be said of it yet when the host judges
    pending = True

    def observe(self, ctx: Context) -> Observed:
        pid = find_journald(ctx)
        if pid is None:
            return None, {}
        storage, machine_id = _find_open(ctx, pid)
        if machine_id != (files.find_text(ctx.path(_MACHINE_ID)) or "").strip():
            return b"", {"storage": storage, "journald": "does not write under this machine's id"}
        return machine_id.encode(), {"storage": storage}

    def reset(self, ctx: Context) -> Details:
        if find_journald(ctx) is not None:
            ctx.later.append(lambda: start_anew(ctx))
        return {}


def start_anew(ctx: Context) -> None:
    """End journald; systemd starts it again."""
    pid = find_journald(ctx)
    if pid is None:
        log("journald was not told of its new machine-id: it does not run")
        return
    files.remove(ctx.path(_NUMBERS))
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ends by itself, and starts


def find_journald(ctx: Context) -> int | None:
    """Return the number of systemd's journald, None where there is none, or nobody who starts it again."""
    for cgroup in _CGROUPS:
        pids = (files.find_text(ctx.path(f"{cgroup}/{_UNIT}")) or "").split()
        if pids:
            return int(pids[0])
    return None


def _find_open(ctx: Context, pid: int) -> tuple[str, str]:
    """Return where journald has files open: the storage, and the name of its folder there."""
    folder = ctx.path(f"/proc/{pid}/fd")
    try:
        for fd in reversed(os.listdir(folder)):  # its sockets come first, and each look costs
            file = os.readlink(f"{folder}/{fd}")
            for storage in _STORAGES:
                if file.startswith(storage):
                    return storage, file[len(storage) :].partition("/")[0]
    except FileNotFoundError:  # it has just ended, or closed a file
        pass
    return "none", ""


ITEM = Journal
