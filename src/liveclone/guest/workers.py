"""A few threads that wait for work, so that a request costs a hand-over and not the making of a thread.

A task that never returns keeps its thread; the next task gets another. Threads are daemons: the end of the
process does not wait for them.
"""

from __future__ import annotations

import queue
import threading

from . import priority
from .errors import log_exception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Task = Callable[[], None]


class Workers:
    """Runs each task at once, on a waiting thread or a new one; `keep` threads are there from the start and stay.

    With `go_first`, threads wait at a priority above everything in the guest and give it up for a task that is
    not urgent, so that an urgent one is not even late in beginning.
    """

    def __init__(self, keep: int = 5, *, go_first: bool = False) -> None:
        self._keep = keep
        self._go_first = go_first
        self._idle = keep  # threads that wait and are not yet promised to a task
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[Task, bool]] = queue.SimpleQueue()
        for _ in range(keep):
            self._start_thread()

    def submit(self, task: Task, *, urgent: bool = False) -> None:
        """Run `task` beside the caller."""
        with self._lock:
            promised = self._idle > 0
            if promised:
                self._idle -= 1
        self._tasks.put((task, urgent))
        if not promised:
            self._start_thread()

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        raised = self._go_first and priority.go_first()
        while True:
            task, urgent = self._tasks.get()
            if raised and not urgent:
                priority.go_along()
            try:
                task()
            except Exception:  # the edge of a task
                log_exception("a task")
            del task
            if raised:
                priority.go_first()
            with self._lock:
                if self._idle >= self._keep:
                    return
                self._idle += 1
