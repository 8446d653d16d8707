"""How the host reaches a machine's guest: liveclone's agent, its ports, and the stock QEMU guest agent beside it."""

from __future__ import annotations

from .base import Value


class GuestPort(Value, frozen=True, kw_only=True):
    """A port of liveclone's agent that a machine has, or would have after a cold start.

    `added`: liveclone has plugged it into a machine that others made, and takes it away again when asked.
    """

    name: str  # "agent", "exec"
    live: bool
    persistent: bool
    added: bool = False


class AgentStatus(Value, frozen=True, kw_only=True):
    """What a machine has of it all. `problem`: why liveclone's agent does not answer; empty when it does."""

    machine: str  # id
    name: str
    ports: tuple[GuestPort, ...]
    agent: str = ""  # its version, "0.1.0"
    python: str = ""  # that it runs under
    problem: str = ""
    stock: str = ""  # version of the QEMU guest agent
    stock_problem: str = ""  # why that could not install ours; empty when it could
