"""Run a command in a guest through its agent, beside whatever else happens to the machine.

    stdin  ──read()──> [pending] ── exec_io, by offset ──> job in the guest
    stdout <─────────────────────── exec_io, by offset ───  (docs/agent.md)

Several commands share the port and take turns (engine/turns); as long as nobody else waits the connection is kept.
Nothing is lost with one: every byte has an offset, and a command is started under an id of our own choosing, so
whatever was not answered is asked again. So a snapshot in the middle, whose handover replaces the process behind the
port, is only a pause.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import GuestError, LivecloneError, NotFound
from ..host import process
from ..model.machine import Machine
from . import turns
from .agent import Agent
from .context import Context

# How long the guest keeps a question that has no answer yet: whoever else wants the port waits that long at most.
WAIT_S = 0.2
START_DEADLINE_S = 60.0  # of many clones that have just come up, all do at once what they had put off
ANSWER_DEADLINE_S = 60.0
CLOSE_DEADLINE_S = 5.0
TURN_DEADLINE_S = 60.0
INPUT_BYTES = 512 * 1024  # of one question; in base64 far below the agent's limit of a line

# A handover ends the connection once. More in a row, with the machine's process alive, are a broken machine.
_MOST_LOSSES = 3

Read = Callable[[int], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]
Control = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """What to run. `user` empty: the agent's own (root); `cwd` empty: that user's home."""

    argv: Sequence[str]
    user: str = ""
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    tty: bool = False
    rows: int = 0
    cols: int = 0


async def _drop(data: bytes) -> None:
    """Take output that nobody wants."""


@dataclass
class Streams:
    """Where input comes from and output goes.

    `read(n)` returns b"" at the end and never raises; None: the command has no input. What `stdout` and `stderr` raise
    ends the command and is raised by `execute`.
    """

    read: Read | None = None
    stdout: Write = _drop
    stderr: Write = _drop
    controls: deque[Control] = field(default_factory=deque)  # not yet told to the guest
    news: asyncio.Event = field(default_factory=asyncio.Event)  # something to tell: cuts a mere waiting short

    def signal(self, name: str) -> None:
        """Send a signal ("INT") to the command's process group."""
        self._control("exec_signal", signal=name)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its new size."""
        self._control("exec_resize", rows=rows, cols=cols)

    def _control(self, call: str, **args: str | int) -> None:
        self.controls.append((call, args))
        self.news.set()


def find_running(ctx: Context, text: str) -> Machine:
    """Return the machine that `text` names.

    Raises:
        NotFound: there is none, or it does not run.
    """
    machine = ctx.machines.find(text)
    if not process.is_alive(machine.process):
        raise NotFound(
            f"{machine.name} does not run",
            code="not-running",
            tried="finding its process",
            on=machine.name,
            seen="no process",
            next_step=f"liveclone start {machine.name}",
        )
    return machine


async def execute(ctx: Context, machine: Machine, command: Command, streams: Streams) -> int:
    """Run `command` and return its exit code (128 + N where signal N ended it) when all its output has been written.

    However this ends, the command does not go on: it is killed if it still runs.

    Raises:
        GuestError: the guest refused it (no such user, ...), or the machine went away meanwhile.
        TimedOut: the agent does not answer. NotFound: the machine does not run.
    """
    return await _Run(ctx, machine, command, streams).carry_out()


async def ask(ctx: Context, machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a small command and return its exit code and what it wrote."""
    out, err = bytearray(), bytearray()

    async def stdout(data: bytes) -> None:
        out.extend(data)

    async def stderr(data: bytes) -> None:
        err.extend(data)

    code = await execute(ctx, machine, Command(argv), Streams(stdout=stdout, stderr=stderr))
    return code, out.decode(errors="replace"), err.decode(errors="replace")


class _Run:
    """One command under way."""

    def __init__(self, ctx: Context, machine: Machine, command: Command, streams: Streams) -> None:
        self.ctx, self.machine, self.command, self.streams = ctx, machine, command, streams
        self.job = secrets.token_hex(8)
        self.started = False
        self.exit_code: int | None = None
        self.out_at = self.err_at = 0
        self.pending = b""  # input that the guest has not confirmed
        self.in_at = 0  # offset of `pending`
        self.input_ended = self.eof_given = streams.read is None
        self.room = asyncio.Event()  # `pending` is empty
        self.room.set()
        self.writing: asyncio.Task[None] | None = None

    async def carry_out(self) -> int:
        reading = asyncio.ensure_future(self._read_input())
        try:
            await self._turns()
        finally:
            left = [task for task in (reading, self.writing) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await asyncio.shield(self._close())
        assert self.exit_code is not None
        return self.exit_code

    async def _turns(self) -> None:
        ctx, lost = self.ctx, 0
        while self.exit_code is None:
            before = self._position()
            try:
                async with turns.take(ctx, self.machine, TURN_DEADLINE_S) as agent:
                    await self._slice(agent)
            except (GuestError, NotFound) as error:
                lost = lost + 1 if self._position() == before else 1
                if error.code not in ("guest-gone", "not-running") or lost > _MOST_LOSSES:
                    raise
                self.machine = await turns.find_again(ctx, self.machine, error)
            # A reader who is slow (a pager, a full disk) holds us up, but not whoever waits for the port.
            await self._written()

    def _position(self) -> tuple[object, ...]:
        return self.started, self.out_at, self.err_at, self.in_at

    async def _slice(self, agent: Agent) -> None:
        """Talk until the command has ended or somebody else waits for the port."""
        until = time.monotonic() + WAIT_S
        if not self.started:
            await self._start(agent)
        while self.exit_code is None:
            await self._control(agent)
            await self._exchange(agent)
            if self.writing is not None and not (await asyncio.wait({self.writing}, timeout=WAIT_S))[0]:
                return
            await self._written()
            if time.monotonic() >= until and turns.is_wanted(self.ctx, self.machine):
                return

    async def _control(self, agent: Agent) -> None:
        while self.streams.controls:
            call, args = self.streams.controls[0]
            try:
                await agent.call(call, {"job": self.job, **args}, deadline_s=ANSWER_DEADLINE_S)
            except GuestError as error:
                if error.code == "guest-gone":
                    raise
                # Otherwise the command has just ended, or has no terminal.
            self.streams.controls.popleft()

    async def _start(self, agent: Agent) -> None:
        command = self.command
        args = {
            "job": self.job,
            "argv": list(command.argv),
            "user": command.user,
            "cwd": command.cwd,
            "env": dict(command.env),
            "tty": command.tty,
            "rows": command.rows,
            "cols": command.cols,
            "stdin": self.streams.read is not None,
        }
        await agent.call("exec_start", args, deadline_s=START_DEADLINE_S, repeat=True)
        self.started = True

    async def _exchange(self, agent: Agent) -> None:
        """Give input, take output; cut short when there is news while we only wait."""
        self.streams.news.clear()
        args: dict[str, Any] = {"job": self.job, "stdout_from": self.out_at, "stderr_from": self.err_at}
        data, ends = self.pending, self.input_ended and not self.eof_given
        if data or ends:
            args["stdin"] = {"offset": self.in_at, "data": base64.b64encode(data).decode("ascii")}
            args["eof"] = ends
        args["wait_s"] = WAIT_S
        first = not agent.heard  # our turn has just come: the answer may be lost
        asking = asyncio.ensure_future(
            agent.call("exec_io", args, deadline_s=ANSWER_DEADLINE_S, repeat=first)
        )
        news = asyncio.ensure_future(self.streams.news.wait())
        try:
            await asyncio.wait({asking, news}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return  # its answer is dropped by its id, and what it would have brought is asked for again
        finally:
            for task in (asking, news):
                task.cancel()
            await asyncio.gather(asking, news, return_exceptions=True)
        self._take(asking.result(), len(data), ends)

    def _take(self, answer: dict[str, Any], given: int, ended: bool) -> None:
        taken = int(answer["stdin_offset"]) - self.in_at
        if given and taken > 0:
            self.pending = self.pending[taken:]
            self.in_at += taken
        if ended and taken >= given:
            self.eof_given = True
        if not answer["stdin_open"] and not self.eof_given and self.streams.read is not None:
            self.pending, self.input_ended, self.eof_given = b"", True, True  # it reads no more
        if not self.pending:
            self.room.set()
        out = base64.b64decode(answer["stdout"]["data"])
        err = base64.b64decode(answer["stderr"]["data"])
        self.out_at += len(out)
        self.err_at += len(err)
        if out or err:
            self.writing = asyncio.ensure_future(self._write(out, err))
        if answer["exit_code"] is not None:
            self.exit_code = int(answer["exit_code"])

    async def _write(self, out: bytes, err: bytes) -> None:
        if out:
            await self.streams.stdout(out)
        if err:
            await self.streams.stderr(err)

    async def _written(self) -> None:
        if self.writing is not None:
            await self.writing
            self.writing = None

    async def _read_input(self) -> None:
        while self.streams.read is not None and not self.input_ended:
            await self.room.wait()
            data = await self.streams.read(INPUT_BYTES)
            if self.input_ended:
                return
            if data:
                self.pending = data
                self.room.clear()
            else:
                self.input_ended = True
            self.streams.news.set()

    async def _close(self) -> None:
        """Let the guest forget the command, and kill it if it runs; a guest that is gone has done so."""
        with contextlib.suppress(LivecloneError):
            async with turns.take(self.ctx, self.machine, CLOSE_DEADLINE_S) as agent:
                await agent.call("exec_close", {"job": self.job}, deadline_s=CLOSE_DEADLINE_S)
