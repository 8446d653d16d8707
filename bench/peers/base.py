"""What a peer is: a way to come by running copies of an application.

find_obstacle ── open ─> State ── prepare ── start ─> Copy, Copy, ... ── end ──┐
                           └──────────────── again <───────────────────────────┘
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar

from ..lab import Lab

HTTP = 8080


@dataclass(frozen=True)
class Expected:
    """What an answer must hold. `token` empty: each copy has made one of its own."""

    index: str
    token: str = ""


@dataclass(frozen=True)
class Copy:
    """One running copy: how it is asked, and the processes of the host that it consists of."""

    name: str
    namespace: str  # of the network in which it has this address
    address: str
    pids: tuple[int, ...]
    port: int = HTTP


Reached = Callable[[Copy], None]


class State(ABC):
    """What copies are started from, at one size.

    Attributes:
        touched_mib: how much memory the copied thing had ever written to; see `find_touched_mib`.
        make_s, pause_ms: what its making took; None where nothing had to be made.
    """

    expected: Expected
    touched_mib: float = 0.0
    make_s: float | None = None
    pause_ms: float | None = None

    def find_touched_mib(self) -> float:
        """Return `touched_mib`; asked while copies run, as that of a booted guest is known only then."""
        return self.touched_mib

    async def prepare(self, count: int) -> None:
        """Do what is done before anybody asks for `count` copies; it is in no figure of theirs."""
        return

    @abstractmethod
    async def start(self, count: int, reached: Reached) -> None:
        """Start copies, all asked for at once; calls `reached` with each as soon as it is worth while to ask it."""

    @abstractmethod
    async def end(self) -> None:
        """End all copies, those too that were not reached."""


class Peer(ABC):
    """A way. `name` is a word for the command line, `words` one line for people; they are measured in their `order`,
    what takes longest last, so that an interrupted run has the most."""

    name: ClassVar[str]
    words: ClassVar[str]
    order: ClassVar[int]
    sized: ClassVar[bool] = True  # False: it has no memory of a given size
    grows: ClassVar[bool] = True  # False: it is the same at each size, and is measured at the first alone

    async def find_obstacle(self, lab: Lab) -> str:
        """Return why it cannot be measured on this host; empty if it can, as far as is known before."""
        return ""

    @abstractmethod
    async def find_version(self, lab: Lab) -> str:
        """Return the programs that are run, each with its version."""

    @abstractmethod
    def open(self, lab: Lab, ram_mib: int) -> AbstractAsyncContextManager[State]:
        """Make what copies are started from; nothing of it is left afterwards."""


def choose(peers: Sequence[Peer], names: Sequence[str]) -> list[Peer]:
    """Return those that are named, all if none is, in their order.

    Raises:
        ValueError: there is no such peer.
    """
    known = {peer.name: peer for peer in peers}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no {unknown[0]}; there are {', '.join(known)}")
    return [peer for peer in peers if not names or peer.name in names]
