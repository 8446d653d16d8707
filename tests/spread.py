"""Which of several processes (xdist) runs what, and when.

    quick files    to whoever is free, the longest one first: such a test often only waits, so there may be one
                   process more than processors
    machine files  when no quick one is left, to the first `MACHINES` processes: a guest needs a processor of its own.
                   One takes them from the front, the other from the back; so each tier's first machine, which is booted
                   once a process, is booted twice for one tier only.

A file stays together, and in its order. Of the contract, what is held against a real hypervisor is a file of its own.
"""

from __future__ import annotations

import os
from typing import Any

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# A third one would not find a processor on a small machine; more has not been measured.
MACHINES = min(2, os.cpu_count() or 1)

# About how long a test of a folder or a file takes, in seconds; the first that fits counts.
USUAL_S = (
    ("tests/host/test_rules.py", 1.0),
    ("tests/host/test_ports.py", 0.5),
    ("tests/host/", 0.2),
    ("tests/contract/", 0.3),
    ("tests/unit/engine/test_fail_closed.py", 1.0),
    ("tests/unit/engine/", 0.3),
    ("tests/unit/cli/", 0.15),
    ("", 0.03),
)


class Spread(LoadScopeScheduling):  # type: ignore[misc]
    """See the module."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return f"{file} with machines" if _has_machines(nodeid) else file

    def _reschedule(self, node: Any) -> None:
        if self._find_scope(node) is None and not node.shutting_down:
            node.shutdown()  # when it has run what it has
        else:
            super()._reschedule(node)

    def _assign_work_unit(self, node: Any) -> None:
        scope = self._find_scope(node)
        if scope is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _find_scope(self, node: Any) -> str | None:
        """Return what the process is to take next, None when there is nothing for it."""
        quick: list[str] = [scope for scope in self.workqueue if not _has_machines(scope)]
        if quick:
            return max(quick, key=lambda scope: len(self.workqueue[scope]) * _usual_s(scope))
        machines: list[str] = [scope for scope in self.workqueue if _has_machines(scope)]
        able = [other for other in self.nodes if not other.shutting_down][:MACHINES]
        if not machines or node not in able:
            return None
        return sorted(machines, key=_place)[0 if node is able[0] else -1]


def _usual_s(scope: str) -> float:
    return next(seconds for start, seconds in USUAL_S if scope.startswith(start))


def _has_machines(name: str) -> bool:
    return (
        name.startswith(("tests/vm/", "tests/fault/")) or "[qemu" in name or name.endswith(" with machines")
    )


def _place(scope: str) -> tuple[bool, bool, str]:
    """Put the contract first, then `vm`, then `fault`."""
    return scope.startswith("tests/fault/"), scope.startswith("tests/vm/"), scope
