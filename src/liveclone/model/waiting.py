"""A machine that waits to become a clone: all of one but its name, its identity and its network (engine/pool.py)."""

from __future__ import annotations

import enum

from .base import Value
from .machine import Machine
from .snapshot import HotImage


class WaitingState(enum.Enum):
    """How a waiting machine is, as observed now."""

    READY = "ready"
    MAKING = "being made"
    TAKEN = "being taken"
    LOST = "lost"  # its process ended, or who worked on it: thrown away by the next who comes


class Waiting(Value, frozen=True, kw_only=True):
    """The record of a waiting machine, `snapshots/ID/pool/MACHINE.json`.

    `machine.process` is None until its device state is loaded. `image` is the memory image as it was when it was mapped.
    """

    machine: Machine
    image: HotImage
