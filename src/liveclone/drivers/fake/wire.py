"""A connection to one fake machine's control socket: calls with deadlines and our errors.

A machine serves one connection at a time, as QEMU's QMP does; a second one waits in the queue. A connection lost after
sending is Interrupted: the call may or may not have been carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

from ...errors import Conflict, HypervisorError, Interrupted, NotFound, TimedOut
from ...host import unix_socket

DEADLINE_S = 10.0


class Wire:
    """Use `open_wire`."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Path
    ) -> None:
        self.name = name
        self._reader, self._writer, self._log = reader, writer, log
        self._numbers = itertools.count(1)

    async def call(self, do: str, deadline_s: float = DEADLINE_S, **arguments: Any) -> dict[str, Any]:
        """Let the machine do something and return its answer.

        Raises:
            HypervisorError: it was refused; nothing happened.
            TimedOut: no answer by the deadline; it may still be carried out.
            Interrupted: the machine's process ended before the answer.
        """
        number = next(self._numbers)
        question = json.dumps({"id": number, "do": do, **arguments}, default=str).encode()
        try:
            async with asyncio.timeout(deadline_s):
                self._writer.write(question + b"\n")
                await self._writer.drain()
                answer: dict[str, Any] = {}
                while answer.get("id") != number:  # a late answer to a call that was given up
                    answer = await self._read()
        except TimeoutError as error:
            raise TimedOut(
                f"{self.name} did not answer {do} within {deadline_s:g} s",
                code="fake-deadline",
                tried=do,
                on=self.name,
                next_step=f"liveclone logs {self.name} --qemu",
            ) from error
        except (OSError, EOFError) as error:
            raise Interrupted(
                f"the process of {self.name} ended during {do}",
                code="fake-lost",
                tried=do,
                on=self.name,
                seen=last_words(self._log) or repr(error),
                next_step=f"liveclone show {self.name}",
            ) from error
        if "error" in answer:
            raise HypervisorError(
                f"{self.name} refused to {do}: {answer['error']}",
                code="fake-refused",
                tried=do,
                on=self.name,
                seen=answer["error"],
                next_step=f"liveclone logs {self.name} --qemu",
            )
        return answer

    async def greeting(self) -> None:
        """Wait until it is our turn. Raises EOFError or OSError when the machine ends first."""
        await self._read()

    async def _read(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise EOFError("the connection ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def close(self) -> None:
        """End the connection; the machine goes on."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def open_wire(name: str, path: Path, log: Path, deadline_s: float = DEADLINE_S) -> Wire:
    """Connect to a machine's control socket.

    Raises:
        NotFound: nobody listens (code "not-running").
        Conflict: somebody else is connected for longer than the deadline.
        Interrupted: the machine ended while starting; `seen` holds its last words.
    """
    try:
        wire = Wire(name, *await unix_socket.open_connection(path), log)
    except OSError as error:
        raise NotFound(
            f"{name} does not run",
            code="not-running",
            tried="connecting to its control socket",
            on=name,
            seen=last_words(log) or str(error),
            next_step=f"liveclone start {name}",
        ) from error
    try:
        await asyncio.wait_for(wire.greeting(), deadline_s)
    except TimeoutError as error:
        await wire.close()
        raise Conflict(
            f"{name} is busy with another connection",
            code="fake-busy",
            tried="connecting to its control socket",
            on=name,
            seen=f"no greeting within {deadline_s:g} s",
            next_step="try again",
        ) from error
    except (OSError, EOFError) as error:
        await wire.close()
        raise Interrupted(
            f"{name} ended while starting",
            code="fake-lost",
            tried="connecting to its control socket",
            on=name,
            seen=last_words(log) or repr(error),
            next_step=f"read {log}",
        ) from error
    except BaseException:
        await wire.close()
        raise
    return wire


def last_words(log: Path) -> str:
    """Return the end of a machine's log."""
    with contextlib.suppress(OSError):
        return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    return ""
