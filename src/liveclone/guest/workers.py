"""A few threads that wait for work, so that a request costs a hand-over and not the making of a thread.

A task that never returns keeps its thread; the next task gets another. Threads are daemons: the end of the
process does not wait for them.
"""

from __future__ import annotations

import queue
import threading

from .errors import log_exception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Task = Callable[[], None]


class Workers:
    """Runs each task at once, on a waiting thread or a new one; `keep` threads are there from the start and stay."""

    def __init__(self, keep: int = 3) -> None:
        self._keep = keep
        self._idle = keep  # threads that wait and are not yet promised to a task
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for _ in range(keep):
            self._start_thread()

    def submit(self, task: Task) -> None:
        """Run `task` beside the caller."""
        with self._lock:
            promised = self._idle > 0
            if promised:
                self._idle -= 1
        self._tasks.put(task)
        if not promised:
            self._start_thread()

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task()
            except Exception:  # the edge of a task
                log_exception("a task")
            del task
            with self._lock:
                if self._idle >= self._keep:
                    return
                self._idle += 1
