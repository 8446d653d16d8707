"""Ask the agent of a guest. Every call has a deadline, and an agent that hangs is an error that names it.

The connection may be made before the guest runs: the request waits in the port until the agent reads it. A call that fails
by deadline leaves the connection usable; its late answer is dropped by its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from ..drivers.base import Handle
from ..errors import GuestError, TimedOut
from ..formats import agent_frames

# The agent is told less than we wait, so that it can say what hung before we give up on it.
_SLACK_S = 2.0

# Of virtio-serial: 128 buffers of a page each for what comes from the host, used one after the other and never freed.
_PORT_BYTES = 128 * 4096

# When a call that may be repeated is asked again, at first; each time the wait doubles. Longer than `identify` takes:
# an agent that is asked twice has more to do just when it should be quick.
_ASK_AGAIN_S = 0.5


class Agent:
    """A connection to one guest's agent; use `connect`."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self.heard = False  # it has answered on this connection: from then on no reply is lost
        self._reader = reader
        self._writer = writer

    async def call(
        self,
        name: str,
        args: dict[str, Any] | None = None,
        *,
        deadline_s: float,
        repeat: bool = False,
        urgent: bool = False,
    ) -> dict[str, Any]:
        """Ask and return the answer.

        A reply can be lost: the agent drops it as long as its kernel has not noticed that we are connected, and in a clone
        that has just woken up the agent may well be faster. Where asking twice does no harm, `repeat` asks again.

        `urgent` is for a machine that is nothing yet but this call: all that its guest runs waits.

        Raises:
            TimedOut: no answer (code "agent-silent"), or the agent itself ran out of time (code "agent-deadline").
            GuestError: the agent answered with an error, or the guest went away.
        """
        request_id = secrets.token_hex(8)
        began = time.monotonic()
        request = agent_frames.render_request(request_id, name, args or {}, deadline_s, urgent=urgent)
        try:
            async with asyncio.timeout(deadline_s + _SLACK_S):
                reply = await self._ask(request, request_id, name, _ASK_AGAIN_S if repeat else None)
        except TimeoutError as error:
            raise TimedOut(
                f"the agent of {self.name} did not answer {name}",
                code="agent-silent",
                tried=f"agent {name}",
                on=self.name,
                seen=f"nothing for {time.monotonic() - began:.1f} s",
                next_step=f"liveclone console {self.name}, and see whether liveclone-agent runs in it",
            ) from error
        except OSError as error:
            raise self._gone(name, str(error)) from error
        if reply.ok:
            return reply.result
        failure = reply.error or agent_frames.AgentFailure(code="unknown", message="no reason given")
        kind = TimedOut if failure.code == "deadline" else GuestError
        raise kind(
            f"the agent of {self.name} failed at {name}: {failure.message}",
            code=f"agent-{failure.code}",
            tried=f"agent {name}",
            on=self.name,
            seen=failure.message,
            next_step=f"liveclone logs {self.name}",
        )

    async def overwrite(self) -> None:
        """Overwrite what the guest's kernel still has of earlier requests in the port's buffers: blanks mean nothing."""
        line = b" " * 4095 + b"\n"
        for _ in range(2 * _PORT_BYTES // len(line)):
            self._writer.write(line)
            await self._writer.drain()
        await self.call("ping", deadline_s=30.0, repeat=True)

    async def _ask(
        self, request: bytes, request_id: str, name: str, wait_s: float | None
    ) -> agent_frames.Reply:
        reading = asyncio.ensure_future(self._reply(request_id, name, wait_s is not None))
        try:
            while not reading.done():
                self._writer.write(request)
                await self._writer.drain()
                await asyncio.wait({reading}, timeout=wait_s)
                wait_s = wait_s and wait_s * 2
            return reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _reply(self, request_id: str, name: str, repeat: bool) -> agent_frames.Reply:
        while True:
            try:
                line = await self._reader.readline()
            except ValueError as error:  # a line beyond the stream's limit
                raise self._gone(name, str(error)) from error
            if not line:
                raise self._gone(name, "the connection ended")
            self.heard = True
            reply = agent_frames.parse_reply(line, request_id)
            # "busy" is the answer to a repetition while the first one is still being carried out: that one counts.
            if reply is not None and not (repeat and reply.error and reply.error.code == "busy"):
                return reply

    def _gone(self, name: str, seen: str) -> GuestError:
        return GuestError(
            f"{self.name} went away during {name}",
            code="guest-gone",
            tried=f"agent {name}",
            on=self.name,
            seen=seen,
            next_step=f"liveclone show {self.name}",
        )

    async def close(self) -> None:
        """Let go of the port."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def connect(handle: Handle, name: str, port: str = "agent") -> AsyncIterator[Agent]:
    """Connect to a guest's port ("agent" for control, "exec" for commands and copies)."""
    reader, writer = await handle.agent(port)
    agent = Agent(name, reader, writer)
    try:
        yield agent
    finally:
        await agent.close()
