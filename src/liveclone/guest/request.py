"""One request while it is being handled: its deadline, what runs for it, and its single answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import CallError
from .process import Child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .workers import Task


class Request:
    """A call of the host. Answered exactly once: by the worker, or by the server when the deadline passes."""

    def __init__(
        self,
        id: str,
        call: str,
        args: dict[str, Any],
        deadline_s: float,
        send: Callable[[dict[str, Any]], Any],
        *,
        urgent: bool = False,
    ) -> None:
        self.id = id
        self.call = call
        self.args = args
        self.read_at_ns = time.monotonic_ns()
        self.deadline_at = time.monotonic() + deadline_s
        self.deadline_s = deadline_s
        self.urgent = urgent  # the whole machine waits for it: it goes before everything else in the guest
        self.later: list[Task] = []  # run by the worker once the answer is out
        self._send = send
        self._lock = threading.Lock()
        self._answered = False
        self._expired = False
        self._running: list[str] = []
        self._children: set[Child] = set()

    @property
    def answered(self) -> bool:
        return self._answered

    def remaining_s(self) -> float:
        """Return the seconds left until the deadline, never negative."""
        return max(0.0, self.deadline_at - time.monotonic())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Mark that `name` ("item clock", "hook 10-app") runs for this request, in any thread.

        Raises:
            CallError: the deadline has passed; nothing more is begun.
        """
        with self._lock:
            if self._expired:
                raise CallError("deadline", f"{name} was not begun: the deadline has passed")
            self._running.append(name)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(name)

    @contextmanager
    def watched(self, child: Child) -> Iterator[None]:
        """Let the deadline kill `child`'s process group while the block waits for it."""
        with self._lock:
            self._children.add(child)
            expired = self._expired
        if expired:
            child.kill()
        try:
            yield
        finally:
            with self._lock:
                self._children.discard(child)

    def succeed(self, result: dict[str, Any]) -> None:
        self._answer({"id": self.id, "ok": True, "result": result})

    def fail(self, error: CallError) -> None:
        self._answer({"id": self.id, "ok": False, "error": error.fields()})

    def expire(self) -> None:
        """The deadline has passed: kill the children, and say what hung."""
        with self._lock:
            self._expired = True
            running = list(self._running)
            children = list(self._children)
        for child in children:
            child.kill()
        what = ", ".join(running) or f"call {self.call}"
        self.fail(
            CallError(
                "deadline", f"{what} still ran after {self.deadline_s:g} s", call=self.call, running=running
            )
        )

    def _answer(self, reply: dict[str, Any]) -> None:
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self._send(reply)


def elapsed_ms(since_ns: int) -> float:
    """Return the milliseconds since `since_ns` of the monotonic clock, to the microsecond."""
    return round((time.monotonic_ns() - since_ns) / 1e6, 3)
