"""The application that all peers run, that of the demo: the image with it, what it has to answer, and asking it.

It builds an index in memory, which is the same everywhere, draws a token, which is another in each process, and answers
with both. So a copy of a warm process answers with the token of what it was copied from, and one that was started anew with
one of its own; an answer with anything else is no answer.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import runpy
import time
from pathlib import Path
from typing import Any

from liveclone.errors import GuestError, LivecloneError
from liveclone.host import netns
from liveclone.images.spec import ImageSpec

from .base import HTTP, Copy, Expected

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ROOT / "demo" / "warm_app.py"
GUEST = Path(__file__).parent / "guest"
UNITS = "/etc/systemd/system"
IMAGE = ImageSpec(
    name="bench-app",
    files=(
        (PROGRAM, "/opt/warm_app.py"),
        (ROOT / "demo" / "warm-app.service", f"{UNITS}/warm-app.service"),
        (GUEST / "trimmed.target", f"{UNITS}/trimmed.target"),
        (GUEST / "trimmed.service", f"{UNITS}/trimmed.service"),
        (GUEST / "trimmed.sh", "/opt/trimmed.sh"),
    ),
    script=ROOT / "demo" / "enable.sh",
)
COMMAND = ("/usr/bin/python3", "/opt/warm_app.py")

# It listens when it is warm. Nobody is told of that moment, so it is asked again and again, as its clients would.
WARM_DEADLINE_S = 300.0
PACE_S = 0.01
ATTEMPT_DEADLINE_S = 10.0
_TOKEN = re.compile(r"[0-9a-f]{32}")


@functools.cache
def right_index() -> str:
    """Return the digest of the index, as this host computes it."""
    digest: str = runpy.run_path(str(PROGRAM))["build_index"]()[1]
    return digest


async def first_answer(copy: Copy, expected: Expected, deadline_s: float) -> str:
    """Ask a copy until it answers, and return its token.

    Raises:
        GuestError: it answered something wrong (code "wrong-answer"), or nothing by the deadline ("no-answer").
    """
    end = time.monotonic() + deadline_s
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_DEADLINE_S):
                answer = await _ask(copy)
            break
        except (OSError, ValueError, LivecloneError) as error:
            if time.monotonic() > end:
                raise GuestError(
                    f"{copy.name} does not answer",
                    code="no-answer",
                    tried=f"GET / for {deadline_s:g} s",
                    on=f"{copy.address}:{copy.port}",
                    seen=str(error) or type(error).__name__,
                ) from error
        await asyncio.sleep(PACE_S)
    return check(answer, expected, copy.name)


def check(answer: dict[str, Any], expected: Expected, name: str) -> str:
    """Return the token of an answer.

    Raises:
        GuestError: it is not the right one.
    """
    index, token = str(answer.get("index")), str(answer.get("token"))
    if index == expected.index and (token == expected.token if expected.token else _TOKEN.fullmatch(token)):
        return token
    raise GuestError(
        f"{name} answers something wrong",
        code="wrong-answer",
        tried="GET /",
        on=name,
        seen=f"index {index[:16]}, token {token[:16]}; wanted: {expected.index[:16]}, {expected.token[:16] or 'any'}",
    )


async def _ask(copy: Copy) -> dict[str, Any]:
    reader, writer = await netns.open_connection(copy.namespace, copy.address, copy.port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {copy.name}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise OSError(f"{copy.name} answered {head[:60]!r}")
    found: dict[str, Any] = json.loads(body)
    return found


__all__ = ["COMMAND", "HTTP", "IMAGE", "check", "first_answer", "right_index"]
