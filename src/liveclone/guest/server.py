"""Serves one channel: reads requests, hands them to workers, and keeps every deadline.

The thread that reads is also the one that watches the clock, so a call that hangs costs a worker and nothing else:
the host gets an error that names what hung, and the next request is read as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import frames
from .channel import Channel, PortGone
from .errors import CallError, log_exception
from .priority import go_along, go_first
from .request import Request
from .workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Call = Callable[[Request], dict[str, Any]]

DEFAULT_DEADLINE_S = 60.0
LONGEST_DEADLINE_S = 24 * 3600.0
_URGENT = b'"urgent":true'
MOST_OPEN = 64  # requests at once on one port; a host that asks for more has lost count of its own


class Server:
    """Answers the calls of `calls` on `channel` until the device is gone.

    With `first`, the thread that serves wakes up before anything else in the guest runs, and gives that up for all
    but what the host calls urgent.
    """

    def __init__(
        self, channel: Channel, calls: Mapping[str, Call], workers: Workers, *, first: bool = False
    ) -> None:
        self._ignored = 0
        self._channel = channel
        self._calls = calls
        self._workers = workers
        self._first = first
        self._open: list[Request] = []

    @property
    def ignored(self) -> int:
        """Lines that were no request, or too long."""
        return self._ignored + self._channel.dropped

    def serve(self) -> None:
        """Serve until the device is unplugged or the channel stopped."""
        while True:
            if self._first:
                go_first()
            try:
                lines = self._channel.read(self._expire())
            except PortGone:
                for request in self._open:
                    request.expire()  # nobody is left to keep their deadlines, nor to hear of them
                return
            if self._first and not any(_URGENT in line for line in lines):
                go_along()  # before anything is understood, which takes tens of milliseconds in a new QEMU process
            for line in lines:
                self._take(line)

    def _expire(self) -> float | None:
        """End what is overdue; return the seconds until the next deadline, None without any."""
        self._open = [request for request in self._open if not request.answered]
        for request in self._open:
            if request.remaining_s() <= 0:
                request.expire()
        return min((r.remaining_s() for r in self._open if not r.answered), default=None)

    def _take(self, line: bytes) -> None:
        message = frames.find_object(line)
        id = message.get("id") if message else None
        if message is None or not isinstance(id, str) or not id or "call" not in message:
            self._ignored += 1
            return
        name, args = message["call"], message.get("args")
        seconds = message.get("deadline_s")
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST_DEADLINE_S:
            seconds = DEFAULT_DEADLINE_S
        args = args if isinstance(args, dict) else {}
        urgent = message.get("urgent") is True
        request = Request(id, str(name), args, float(seconds), self._send, urgent=urgent)
        call = self._calls.get(name) if isinstance(name, str) else None
        if call is None:
            request.fail(CallError("unknown-call", f"there is no call {name!r}"))
        elif len(self._open) >= MOST_OPEN:
            request.fail(CallError("busy", f"{MOST_OPEN} requests are being handled"))
        else:
            self._open.append(request)
            found: Call = call
            self._workers.submit(lambda: _perform(found, request), urgent=urgent)

    def _send(self, reply: dict[str, Any]) -> None:
        data = frames.encode(reply)
        if len(data) > frames.LIMIT:
            error = {"code": "too-big", "message": f"the reply would be {len(data)} bytes long"}
            data = frames.encode({"id": reply["id"], "ok": False, "error": error})
        self._channel.write(data)


def _perform(call: Call, request: Request) -> None:
    try:
        try:
            request.succeed(call(request))
        except CallError as error:
            request.fail(error)
        except (KeyError, TypeError, ValueError) as error:
            log_exception(f"call {request.call}")
            request.fail(CallError("bad-request", f"{type(error).__name__}: {error}"))
        except Exception as error:  # the edge of a request
            log_exception(f"call {request.call}")
            request.fail(CallError("internal", f"{type(error).__name__}: {error}"))
    finally:
        if request.later:
            go_along()  # the host has its answer; the rest may wait for others
        for task in request.later:
            try:
                task()
            except Exception:
                log_exception(f"what follows call {request.call}")
