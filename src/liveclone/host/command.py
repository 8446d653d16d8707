"""Run a program of the host to its end: its lines as they come, a deadline, and nothing of it left afterwards.

    run ── starts in a session of its own ── lines ──> on_line ── exit status ──> output, or an error that tells all
     └─ deadline or cancellation: SIGTERM to the whole group, GRACE_S, SIGKILL; always waited for

For programs that outlive the command, see `process`. Arguments are a list, never a shell's line; errors show them as
a line that can be pasted, and the last lines that the program wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import LivecloneError, StoreError, TimedOut, Unsupported

GRACE_S = 5.0
_TAIL_LINES = 20
_CHUNK = 64 * 1024
_LINE_END = re.compile(rb"[\r\n]+")


async def run(
    argv: Sequence[str],
    *,
    deadline_s: float,
    on_line: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    name: str = "",
    package: str = "",
    failure: type[LivecloneError] = StoreError,
) -> str:
    """Run a program to its end and return its standard output.

    Args:
        on_line: is given each line of standard error, without its end.
        env: variables to set besides our own.
        stdin: what it reads; nothing by default.
        name: what errors call it; its first word by default.
        package: Debian's package of the program, for the message when it is missing.
        failure: the class of error that says it exited with another status than 0.

    Raises:
        Unsupported: there is no such program (code "missing-tool"); nothing ran.
        TimedOut: it was ended at the deadline.
        failure: it failed (code "command-failed"); `seen` has its last lines.
    """
    line, name = shlex.join(argv), name or argv[0]
    try:
        child = await _start(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _missing(argv[0], line, package, error) from error
    except OSError as error:
        raise failure(
            f"{name} cannot be started", code="cannot-start", tried=line, seen=str(error)
        ) from error
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async with asyncio.timeout(deadline_s):
            output = await _talk(child, stdin, tail, on_line)
    except TimeoutError as error:
        raise TimedOut(
            f"{name} did not end within {deadline_s:g} s",
            code="command-timed-out",
            tried=line,
            seen="\n".join(tail),
        ) from error
    finally:
        await _end(child)
    if child.returncode:
        raise failure(
            f"{name} failed with status {child.returncode}",
            code="command-failed",
            tried=line,
            seen="\n".join(tail),
        )
    return output


async def _start(*argv: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a child. One that is being started when we are cancelled is ended, with its group: asyncio kills it alone."""
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*argv, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _end(await starting)
        raise


async def _talk(
    child: asyncio.subprocess.Process,
    stdin: bytes | None,
    tail: deque[str],
    on_line: Callable[[str], None] | None,
) -> str:
    assert child.stdout is not None
    async with asyncio.TaskGroup() as group:
        if stdin is not None:
            group.create_task(_feed(child, stdin))
        group.create_task(_read_lines(child, tail, on_line))
        output = await child.stdout.read()
    await child.wait()
    return output.decode(errors="replace")


async def _feed(child: asyncio.subprocess.Process, data: bytes) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it did not want all; its status tells
        child.stdin.write(data)
        await child.stdin.drain()
    child.stdin.close()


async def _read_lines(
    child: asyncio.subprocess.Process, tail: deque[str], on_line: Callable[[str], None] | None
) -> None:
    assert child.stderr is not None
    rest = b""
    while True:
        data = await child.stderr.read(_CHUNK)
        # Progress bars end their lines in \r; the last line may have no end at all.
        *lines, rest = _LINE_END.split(rest + data) if data else (rest, b"")
        for raw in lines:
            text = raw.decode(errors="replace").rstrip()
            if text:
                tail.append(text)
                if on_line is not None:
                    on_line(text)
        if not data:
            return


async def _end(child: asyncio.subprocess.Process) -> None:
    """End the child's whole group and wait for it, even while we are being cancelled."""
    if child.returncode is None:
        await asyncio.shield(_terminate(child))


async def _terminate(child: asyncio.subprocess.Process) -> None:
    _signal_group(child, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), GRACE_S)
    _signal_group(child, signal.SIGKILL)  # those of the group that took no notice
    await child.wait()


def _signal_group(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _missing(program: str, line: str, package: str, error: OSError) -> Unsupported:
    return Unsupported(
        f"{program} is not installed",
        code="missing-tool",
        tried=line,
        on=program,
        seen=str(error),
        next_step=f"apt install {package}" if package else f"install {program}",
    )
