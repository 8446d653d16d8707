"""A guest that liveclone does not run: made ready through the agent that its image has, as its owner would over ssh.

    boot ── ping ── network ── the application answers ── fill its memory
    └────── connect ──────┘

`make_ready` is all of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from liveclone.engine.agent import Agent
from liveclone.errors import GuestError
from liveclone.host import unix_socket

from ..lab import GUEST_LOAD
from . import app
from .base import Copy, Expected

# Of QEMU's user network: the same in each, as each QEMU has one of its own.
ADDRESS, GATEWAY, PREFIX = "10.0.2.15", "10.0.2.2", 24
BOOT_DEADLINE_S = 600.0  # of sixteen at once, under emulation
CONFIGURE_DEADLINE_S = 120.0
FILL_DEADLINE_S = 180.0
ANSWER_DEADLINE_S = 30.0
WAIT_S = 1.0
JOB = "fill"


async def make_ready(port: Path, exec_port: Path, copy: Copy, mac: str) -> Expected:
    """See that a booting guest is warm and its memory filled; returns what it answers. Both ports are sockets.

    Raises:
        GuestError, TimedOut: it does not come so far.
    """
    await connect(port, copy.name, mac, f"{ADDRESS}/{PREFIX}", GATEWAY)
    index = await asyncio.to_thread(app.right_index)
    token = await app.first_answer(copy, Expected(index), app.WARM_DEADLINE_S)
    async with _connect(copy.name, exec_port) as agent:
        await _fill(agent)
    return Expected(index, token)


async def connect(port: Path, name: str, mac: str, address: str, gateway: str) -> None:
    """Wait for a guest to boot, and give its card an address (CIDR)."""
    async with _connect(name, port) as agent:
        await agent.call("ping", deadline_s=BOOT_DEADLINE_S)
        nic = {"mac": mac, "address": address, "gateway": gateway, "dns": ""}
        given = {"nics": [nic], "wait_s": CONFIGURE_DEADLINE_S}
        await agent.call("network", given, deadline_s=CONFIGURE_DEADLINE_S, repeat=True)


@contextlib.asynccontextmanager
async def _connect(name: str, port: Path) -> AsyncIterator[Agent]:
    agent = Agent(name, *await unix_socket.open_connection(port))
    try:
        yield agent
    finally:
        await agent.close()


async def _fill(agent: Agent) -> None:
    given = {"argv": ["python3", "-c", GUEST_LOAD, JOB], "user": "", "cwd": "", "env": {}}
    terminal = {"tty": False, "rows": 0, "cols": 0, "stdin": False}
    await agent.call("exec_start", {"job": JOB, **given, **terminal}, deadline_s=ANSWER_DEADLINE_S)
    asked = {"job": JOB, "stdout_from": 0, "stderr_from": 0, "wait_s": WAIT_S}
    async with asyncio.timeout(FILL_DEADLINE_S):
        while True:
            answer: dict[str, Any] = await agent.call("exec_io", asked, deadline_s=ANSWER_DEADLINE_S)
            if answer["exit_code"] is not None:
                break
    if answer["exit_code"]:
        seen = base64.b64decode(answer["stderr"]["data"]).decode(errors="replace")
        raise GuestError(
            "the guest cannot fill its memory",
            code="no-load",
            tried="guest_load.py",
            on=agent.name,
            seen=seen[-300:],
        )
