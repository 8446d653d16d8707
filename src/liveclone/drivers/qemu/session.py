"""One QMP connection: commands with deadlines, events that cannot be missed, and our own errors.

The protocol is qemu.qmp's. What this adds: every command is bounded, every failure says which command on which
machine and what QEMU said, and an event is subscribed to *before* the command that causes it (`watch`).
A connection lost after sending is Interrupted: the command may or may not have been carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, EventListener, Message, QMPClient, QMPError, StateError
from qemu.qmp.qmp_client import ExecInterruptedError, ExecuteError, GreetingError

from ...errors import Conflict, HypervisorError, Interrupted, NotFound, TimedOut
from ...host import unix_socket

log = logging.getLogger(__name__)
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it reports what we raise anyway

# A command that only looks or flips a switch answers within a millisecond; ten seconds is a machine in trouble.
DEADLINE_S = 10.0


class _Client(QMPClient):
    """The library's, without its log of messages: it renders each, for nobody. That was a sixth of a clone's Python."""

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class Session:
    """A QMP connection to one QEMU. Use `open_session`."""

    def __init__(self, name: str, client: QMPClient, log_path: Path) -> None:
        self.name = name
        self._client = client
        self._log_path = log_path

    async def call(self, command: str, deadline_s: float = DEADLINE_S, **arguments: Any) -> Any:
        """Run one command and return its result. Underscores in argument names become dashes.

        Raises:
            HypervisorError: QEMU refused it; nothing happened.
            TimedOut: no answer by the deadline; it may still be carried out.
            Interrupted: QEMU ended, or the connection did, before the answer.
        """
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        log.debug("qmp %s %s", command, given)
        try:
            return await asyncio.wait_for(self._client.execute(command, given or None), deadline_s)
        except TimeoutError as error:
            raise TimedOut(
                f"QEMU of {self.name} did not answer {command} within {deadline_s:g} s",
                code="qmp-deadline",
                tried=f"QMP {command}",
                on=self.name,
                next_step=f"liveclone logs {self.name} --qemu",
            ) from error
        except ExecuteError as error:
            raise HypervisorError(
                f"QEMU refused {command}: {error}",
                code="qmp-refused",
                tried=f"QMP {command}",
                on=self.name,
                seen=str(error),
                next_step=f"liveclone logs {self.name} --qemu",
            ) from error
        except (ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise self.lost(command, error) from error

    def lost(self, command: str, error: BaseException | None = None) -> Interrupted:
        """Return the error for a connection that ended under a command."""
        return Interrupted(
            f"the connection to QEMU of {self.name} ended during {command}",
            code="qmp-lost",
            tried=f"QMP {command}",
            on=self.name,
            seen=last_words(self._log_path) or _how_it_ended(error),
            next_step=f"liveclone show {self.name}",
        )

    @contextlib.asynccontextmanager
    async def watch(self, *names: str) -> AsyncIterator[Watch]:
        """Collect the named events from now on; leave the block to stop."""
        listener = EventListener(names)
        self._client.register_listener(listener)
        try:
            yield Watch(self, listener)
        finally:
            self._client.remove_listener(listener)

    async def lend(self, fd: int, name: str) -> None:
        """Give QEMU a copy of an open descriptor under a name (QMP getfd)."""
        self._client.send_fd_scm(fd)
        await self.call("getfd", fdname=name)

    async def gone(self) -> None:
        """Wait until the connection has ended."""
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection; QEMU goes on."""
        with contextlib.suppress(QMPError, EOFError, OSError, asyncio.CancelledError):
            await self._client.disconnect()


class Watch:
    """Events being collected."""

    def __init__(self, session: Session, listener: EventListener) -> None:
        self._session = session
        self._listener = listener

    async def until(
        self, wanted: Callable[[dict[str, Any]], bool], what: str, deadline_s: float
    ) -> dict[str, Any]:
        """Return the first event that satisfies `wanted`.

        Raises:
            TimedOut: none came; `what` names what was awaited.
            Interrupted: QEMU ended first.
        """

        async def scan() -> dict[str, Any]:
            while True:
                event: dict[str, Any] = dict(await self._listener.get())
                if wanted(event):
                    return event

        scanning = asyncio.ensure_future(scan())
        ending = asyncio.ensure_future(self._session.gone())
        try:
            await asyncio.wait({scanning, ending}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if scanning.done():
                return scanning.result()
            if ending.done():
                raise self._session.lost(what)
            raise TimedOut(
                f"{what} did not happen on {self._session.name} within {deadline_s:g} s",
                code="event-deadline",
                tried=what,
                on=self._session.name,
                next_step=f"liveclone logs {self._session.name} --qemu",
            )
        finally:
            for task in (scanning, ending):
                task.cancel()
            await asyncio.gather(scanning, ending, return_exceptions=True)


def last_words(log_path: Path) -> str:
    """Return the end of a QEMU's own log."""
    with contextlib.suppress(OSError):
        lines = log_path.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])
    return ""


def _how_it_ended(error: BaseException | None) -> str:
    """Say what was seen of a QEMU that left no words; what is not simply the end of its connection is shown as it is."""
    if error is None or isinstance(error, (StateError, ExecInterruptedError, EOFError, ConnectionError)):
        return "it closed the connection without a word, as when it is killed"
    return repr(error)


def event_ns(event: dict[str, Any]) -> int:
    """Return QEMU's own time stamp of an event, nanoseconds since the epoch (microsecond steps)."""
    stamp = event["timestamp"]
    return (int(stamp["seconds"]) * 1_000_000 + int(stamp["microseconds"])) * 1000


async def open_session(
    name: str, socket_path: Path, log_path: Path, deadline_s: float = DEADLINE_S
) -> Session:
    """Connect to a QEMU's QMP socket.

    QEMU serves one connection at a time; a second one waits in the queue until the first ends.

    Raises:
        NotFound: nobody listens (code "not-running").
        Conflict: somebody else is connected for longer than the deadline.
        Interrupted: QEMU ended while starting; `seen` holds its last words.
    """
    client = _Client(name)
    client.negotiate = False
    session = Session(name, client, log_path)
    try:
        async with asyncio.timeout(deadline_s):
            await _shake_hands(client, socket_path)
    except TimeoutError as error:
        await session.close()
        raise Conflict(
            f"QEMU of {name} is busy with another connection",
            code="qmp-busy",
            tried="connecting to QMP",
            on=name,
            seen=f"no greeting within {deadline_s:g} s",
            next_step="try again",
        ) from error
    except QMPError as error:
        await session.close()
        raise session.lost("connecting", error) from error
    except OSError as error:
        raise NotFound(
            f"{name} does not run",
            code="not-running",
            tried="connecting to QMP",
            on=name,
            seen=last_words(log_path) or str(error),
            next_step=f"liveclone start {name}",
        ) from error
    return session


async def _shake_hands(client: QMPClient, socket_path: Path) -> None:
    """Connect and leave QMP's negotiation mode.

    An event of QEMU's may come in front of its greeting (the monitor is still in the mode of the connection before) and
    in front of its first answer. The library's own negotiation takes either for what it awaits; so a greeting that is
    none is asked for again, and the first command is sent as any other.
    """
    while True:
        sock = unix_socket.connect(socket_path)
        try:
            await client.connect(sock)
            break
        except ConnectError as error:
            sock.close()
            if not isinstance(error.exc, GreetingError):
                raise
        except BaseException:
            sock.close()
            raise
    await client.execute("qmp_capabilities")
