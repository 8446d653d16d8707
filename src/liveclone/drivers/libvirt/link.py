"""A connection to libvirtd: its calls in threads, its errors as ours, its events in our loop.

    caller ── await link.call(domain.suspend) ── thread ── libvirtd
    caller <── Watch ── call_soon_threadsafe ── the library's event loop, one thread a process

The library blocks, so each call gets a thread; a call that is given up goes on there, and the one who gives it up has to
end it (abortJob) and wait. The library's events want a loop of its own that runs in one thread for as long as we live.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import libvirt

from ...errors import HypervisorError, Interrupted, LivecloneError, NotFound, StoreError, TimedOut

# A daemon that says nothing for three times this long is gone, and calls to it end.
_KEEPALIVE_S = 5

_looping = 0  # the process whose thread runs the library's loop


def _run_events() -> None:
    """Let the library's loop run in this process; a child that was forked needs a thread of its own."""
    global _looping
    if _looping == os.getpid():
        return
    if not _looping:
        libvirt.virEventRegisterDefaultImpl()
        libvirt.registerErrorHandler(
            lambda *_: None, None
        )  # it would print each error, also those that we expect
    _looping = os.getpid()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


@dataclass(frozen=True)
class Event:
    """What happened to a domain: `kind` is the library's VIR_DOMAIN_EVENT_ID_*, `facts` what follows the domain."""

    kind: int
    facts: tuple[Any, ...]
    at: float  # time.monotonic() when it was seen


class Watch:
    """Events of one domain since it was opened, in order; use `Link.watch`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        self._queue.put_nowait(event)

    async def until(self, wanted: Callable[[Event], bool], what: str, deadline_s: float) -> Event:
        """Return the first event that is wanted; those before it are dropped.

        Raises:
            TimedOut: it did not come.
        """
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    event = await self._queue.get()
                    if wanted(event):
                        return event
        except TimeoutError as error:
            raise TimedOut(
                f"{what} of {self._name} took longer than {deadline_s:g} s",
                code="event-deadline",
                tried=what,
                on=self._name,
                seen="no event of libvirt",
                next_step="virsh domjobinfo, and libvirt's log",
            ) from error


@dataclass
class Link:
    """One connection; use `open_link`. `name` is who it is about, for errors."""

    uri: str
    name: str
    connection: libvirt.virConnect
    _closed: bool = field(default=False)

    async def call(self, tried: str, function: Callable[..., Any], *args: Any) -> Any:
        """Carry out a call of the library.

        Raises:
            NotFound: there is no such domain. Interrupted: the daemon went away. HypervisorError: libvirt says no.
        """
        try:
            return await asyncio.to_thread(function, *args)
        except libvirt.libvirtError as error:
            raise explain(error, tried, self.name, alive=self.is_alive()) from error

    def is_alive(self) -> bool:
        """Tell whether the daemon is still there."""
        try:
            return bool(self.connection.isAlive() == 1)
        except libvirt.libvirtError:
            return False

    @contextlib.asynccontextmanager
    async def watch(self, domain: libvirt.virDomain, *kinds: int) -> AsyncIterator[Watch]:
        """See the events of these kinds that happen to the domain in the block."""
        watch, loop, ids = Watch(self.name), asyncio.get_running_loop(), []

        def seen(_connection: Any, _domain: Any, *facts: Any) -> None:
            event = Event(facts[-1], facts[:-1], time.monotonic())
            with contextlib.suppress(RuntimeError):  # our loop has ended
                loop.call_soon_threadsafe(watch.put, event)

        try:
            for kind in kinds:
                ids.append(
                    await self.call(
                        "watching", self.connection.domainEventRegisterAny, domain, kind, seen, kind
                    )
                )
            yield watch
        finally:
            for one in ids:
                with contextlib.suppress(libvirt.libvirtError):
                    await asyncio.to_thread(self.connection.domainEventDeregisterAny, one)

    async def close(self) -> None:
        """Let go; twice does no harm."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(libvirt.libvirtError):
                await asyncio.to_thread(self.connection.close)


async def open_link(uri: str, name: str) -> Link:
    """Connect to a libvirtd; `uri` empty: libvirt's own default.

    Raises:
        HypervisorError: it does not answer (code "no-libvirt").
    """
    _run_events()
    try:
        connection = await asyncio.to_thread(libvirt.open, uri or None)
        connection.setKeepAlive(_KEEPALIVE_S, 3)
    except libvirt.libvirtError as error:
        raise HypervisorError(
            f"libvirt does not answer at {uri or 'its default URI'}",
            code="no-libvirt",
            tried="connecting to libvirt",
            on=uri or "libvirt's default URI",
            seen=str(error),
            source_state="not touched",
            next_step="see whether libvirtd (or virtqemud) runs: liveclone doctor, virsh uri",
        ) from error
    return Link(uri, name, connection)


def explain(error: libvirt.libvirtError, tried: str, on: str, *, alive: bool) -> LivecloneError:
    """Return an error of libvirt as one of ours; `alive`: the daemon still answers."""
    code, seen = error.get_error_code(), str(error)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFound(
            f"{on} is no domain of libvirt any more",
            code="not-running",
            tried=tried,
            on=on,
            seen=seen,
            next_step="virsh list --all",
        )
    if not alive:
        return Interrupted(
            f"libvirt went away at {tried} of {on}",
            code="libvirt-gone",
            tried=tried,
            on=on,
            seen=seen,
            next_step="start libvirtd (or virtqemud) again",
        )
    if code in (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_AGENT_UNRESPONSIVE):
        return TimedOut(
            f"libvirt took too long at {tried} of {on}",
            code="libvirt-deadline",
            tried=tried,
            on=on,
            seen=seen,
        )
    if "No space left on device" in seen:
        return StoreError(
            f"there was no room for {tried} of {on}",
            code="disk-full",
            tried=tried,
            on=on,
            seen=seen,
            next_step=f"make room: virsh domblklist {on}, df -h",
        )
    hooked = code == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED
    return HypervisorError(
        f"libvirt could not carry out {tried} of {on}",
        code="libvirt-refused",
        tried=tried,
        on=on,
        seen=seen,
        next_step="liveclone libvirt hook-status" if hooked else f"virsh dominfo {on}, and libvirt's log",
    )
