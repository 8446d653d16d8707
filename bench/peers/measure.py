"""One peer after the other, each at each size: make what copies are started from, then one at a time, then many at once.

A peer that cannot be measured costs no other: what was seen is noted in place of its values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from liveclone.errors import LivecloneError, Refused
from liveclone.host import links
from liveclone.host.machine import cpus
from liveclone.model.network import NetworkKind
from liveclone.units import MIB

from ..crowd import wait_idle
from ..lab import Lab, take_image
from ..private import private_bytes
from ..series import Scalar
from . import app
from .base import Copy, Peer, State

# Sixteen cold boots on two processors under emulation take minutes.
ANSWER_DEADLINE_S = 600.0
READY, MEMORY, MAKE, PAUSE = "peer_ready", "peer_memory", "peer_make", "peer_pause"
UNITS = {READY: "s", MEMORY: "MiB", MAKE: "s", PAUSE: "ms"}


async def measure(lab: Lab, peers: Sequence[Peer], limit_s: float) -> None:
    """Measure these peers, as the lab's plan says; leave out many at once where that would take longer than `limit_s`.

    Raises:
        Refused: there is no bridge network here, on which copies are asked.
    """
    if lab.ctx.settings.network is not NetworkKind.BRIDGE:
        raise Refused(
            "peers are compared on a bridge network",
            code="needs-root",
            tried="measuring peers",
            seen=f"the network is {lab.ctx.settings.network.value}",
            next_step="run it as root",
        )
    await take_image(lab, app.IMAGE)
    links.ensure_network(lab.ctx.network_spec())
    for peer in peers:
        lab.say(f"{peer.name}: {peer.words}")
        sizes = lab.plan.sizes_mib if peer.grows else lab.plan.sizes_mib[:1]
        for ram_mib in sizes if peer.sized else (0,):
            counts = lab.plan.crowds if ram_mib in (0, lab.plan.crowd_mib) else lab.plan.crowds[:1]
            await _Size(lab, peer, ram_mib, counts, limit_s).measure()


@dataclass
class _Size:
    """One peer at one size of RAM, so many copies at once."""

    lab: Lab
    peer: Peer
    ram_mib: int
    counts: Sequence[int]
    limit_s: float
    version: str = ""
    touched_mib: float = 0.0

    async def measure(self) -> None:
        left = dict.fromkeys(self.counts)
        try:
            if obstacle := await self.peer.find_obstacle(self.lab):
                raise Refused(obstacle)
            self.version = await self.peer.find_version(self.lab)
            async with self.peer.open(self.lab, self.ram_mib) as state:
                self._note_making(state)
                alone_s = 0.0
                for count in self.counts:
                    self._check_limit(count, alone_s)
                    for number in range(1 if count > 1 else self.lab.plan.clones):
                        alone_s = await self._round(state, count, weigh=number == 0)
                    del left[count]
        except* (LivecloneError, OSError) as failures:
            obstacle = _explain(failures)
            self.lab.say(f"  [yellow]not measured: {obstacle}[/]")
            for count in left:
                self._leave_out(obstacle, count)

    def _note_making(self, state: State) -> None:
        self.touched_mib = state.touched_mib
        if state.make_s is not None:
            self._add(MAKE, state.make_s, 0)
        if state.pause_ms is not None:
            self._add(PAUSE, state.pause_ms, 0)
        if state.make_s is not None:
            pause = "" if state.pause_ms is None else f", a pause of {state.pause_ms:.1f} ms"
            self.lab.say(f"  {self._size()}made in {state.make_s:.2f} s{pause}")

    def _check_limit(self, count: int, alone_s: float) -> None:
        """See that so many at once are done in time, as far as one tells that had a processor to itself."""
        expected_s = alone_s * count / cpus()
        if count > 1 and expected_s > self.limit_s:
            raise Refused(
                f"{count} at once would take some {expected_s:.0f} s, as one takes {alone_s:.0f}: beyond --limit"
            )

    async def _round(self, state: State, count: int, *, weigh: bool) -> float:
        """Ask for `count` copies at once; note when each has answered, and what it weighs. Returns the last one's time."""
        await state.prepare(count)
        copies: list[Copy] = []
        asking: list[asyncio.Task[str]] = []
        ready_s: list[float] = []
        began = time.monotonic()

        async def ask(copy: Copy) -> str:
            token = await app.first_answer(copy, state.expected, ANSWER_DEADLINE_S)
            ready_s.append(time.monotonic() - began)
            return token

        try:
            async with asyncio.TaskGroup() as group:

                def reached(copy: Copy) -> None:
                    copies.append(copy)
                    asking.append(group.create_task(ask(copy)))

                await state.start(count, reached)
            self._check(state, count, [task.result() for task in asking])
            self.touched_mib = state.find_touched_mib()
            for value in ready_s:
                self._add(READY, value, count)
            weight = await self._weigh(copies) if weigh else ""
            self.lab.say(
                f"  {self._size()}{count} at once: {_range(ready_s)} s{weight}"
                if count > 1
                else f"  {self._size()}{ready_s[0]:.3f} s{weight}"
            )
            return max(ready_s)
        finally:
            await asyncio.shield(state.end())

    def _check(self, state: State, count: int, tokens: Sequence[str]) -> None:
        """Copies of a warm one have its token, which was compared; others have one each."""
        different = 1 if state.expected.token else count
        assert len(tokens) == count, tokens
        assert len(set(tokens)) == different, tokens

    async def _weigh(self, copies: Sequence[Copy]) -> str:
        waited_s = await wait_idle([pid for copy in copies for pid in copy.pids])
        weights = [sum(private_bytes(pid) for pid in copy.pids) / MIB for copy in copies]
        for value in weights:
            self._add(MEMORY, value, len(copies))
        return f"; {sum(weights) / len(weights):.1f} MiB private each, idle after {waited_s:.0f} s"

    def _add(self, series: str, value: float, count: int) -> None:
        self.lab.recorder.add(
            series,
            UNITS[series],
            value,
            ram_mib=self.ram_mib,
            touched_mib=self.touched_mib,
            clones=count,
            **self._dimensions(),
        )

    def _leave_out(self, obstacle: str, count: int) -> None:
        self.lab.recorder.leave_out(
            READY, UNITS[READY], obstacle, ram_mib=self.ram_mib, clones=count, **self._dimensions()
        )

    def _dimensions(self) -> dict[str, Scalar]:
        known = {"version": self.version} if self.version else {}
        return {"peer": self.peer.name, **known}

    def _size(self) -> str:
        return f"{self.ram_mib} MiB: " if self.ram_mib else ""


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _explain(failures: BaseExceptionGroup[Exception]) -> str:
    """Return one line about the first of them."""
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    seen = first.seen if isinstance(first, LivecloneError) else ""
    message = first.message if isinstance(first, LivecloneError) else f"{type(first).__name__}: {first}"
    return " ".join((f"{message}: {seen}" if seen else message).split())[:400]
