"""Run programs in a guest through the QEMU guest agent that its distribution has: slow, and enough to put ours into it.

guest-info         which commands it has, and which its owner has switched off
guest-exec         start a program, with input            (qga/qapi-schema.json, QEMU 2.5 and later)
guest-exec-status  has it ended? It tells nobody, so it is asked again and again
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..drivers.base import Handle
from ..errors import GuestError, TimedOut, Unsupported

ANSWER_DEADLINE_S = 10.0
NEEDED = ("guest-exec", "guest-exec-status")
_FIRST_LOOK_S, _LAST_LOOK_S = 0.05, 0.5


@dataclass(frozen=True)
class Ended:
    """A program that has ended; 128 + N where signal N ended it."""

    code: int
    out: str
    err: str


class StockAgent:
    """The stock agent of a machine that the caller holds."""

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self.name = handle, name

    async def check(self) -> str:
        """Return its version, if it may run programs.

        Raises:
            Unsupported: there is none (code "no-stock-agent"), or it may not (code "no-guest-exec").
            TimedOut: it does not answer.
        """
        answer = await self._handle.ask_stock_agent("guest-info", {}, ANSWER_DEADLINE_S)
        enabled = {one["name"]: bool(one["enabled"]) for one in answer["supported_commands"]}
        for command in NEEDED:
            if not enabled.get(command):
                raise Unsupported(
                    f"the QEMU guest agent of {self.name} may not run programs",
                    code="no-guest-exec",
                    tried="installing the agent",
                    on=self.name,
                    seen=f"{command} is {'switched off' if command in enabled else 'not known to it'}",
                    source_state="running, not touched",
                    next_step="in the guest: take guest-exec and guest-exec-status out of the blocked commands "
                    "(/etc/sysconfig/qemu-ga, /etc/qemu/qemu-ga.conf), and restart qemu-guest-agent (docs/libvirt.md)",
                )
        return str(answer["version"])

    async def run(self, argv: Sequence[str], *, given: bytes = b"", deadline_s: float) -> Ended:
        """Run a program as the stock agent's user, which is root, and wait for its end.

        Args:
            given: its input, less than 200 KiB: the stock agent never answers a request that is much longer.

        Raises:
            GuestError: it cannot be started. TimedOut: it still runs, and goes on.
        """
        until = time.monotonic() + deadline_s
        started = await self._handle.ask_stock_agent(
            "guest-exec",
            {
                "path": argv[0],
                "arg": list(argv[1:]),
                "input-data": base64.b64encode(given).decode(),
                "capture-output": True,
            },
            deadline_s,
        )
        pause_s = _FIRST_LOOK_S
        while True:
            state = await self._handle.ask_stock_agent(
                "guest-exec-status", {"pid": started["pid"]}, ANSWER_DEADLINE_S
            )
            if state["exited"]:
                code = 128 + int(state["signal"]) if "signal" in state else int(state["exitcode"])
                return Ended(code, _text(state.get("out-data")), _text(state.get("err-data")))
            if time.monotonic() > until:
                raise TimedOut(
                    f"a program in {self.name} took longer than {deadline_s:g} s",
                    code="guest-exec-deadline",
                    tried=" ".join(argv[:1]),
                    on=self.name,
                    source_state="running; the program may go on in it",
                    next_step="try again when the guest is less busy",
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_LOOK_S)

    async def must(self, argv: Sequence[str], what: str, *, given: bytes = b"", deadline_s: float) -> str:
        """As `run`, of a program that must succeed; return its output.

        Raises:
            GuestError: it failed; its last words are in `seen` (code "guest-failed").
        """
        ended = await self.run(argv, given=given, deadline_s=deadline_s)
        if ended.code == 0:
            return ended.out
        said = (ended.err.strip() or ended.out.strip()).splitlines()[-3:]
        raise GuestError(
            f"{what} failed in {self.name}",
            code="guest-failed",
            tried=what,
            on=self.name,
            seen=" | ".join(said) or f"exit code {ended.code}",
            source_state="running",
            next_step="the guest's journal",
        )


def _text(data: str | None) -> str:
    return base64.b64decode(data or "").decode(errors="replace")
