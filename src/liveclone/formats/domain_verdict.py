"""How a part of a libvirt domain is refused: shared by the modules that judge one."""

from __future__ import annotations

from dataclasses import dataclass

TAKE_OUT = "take it out with virsh edit (or virsh detach-device, if it can be unplugged), and try again"


@dataclass(frozen=True)
class Obstacle:
    """Something of a domain that cannot be cloned: `what` it is, `why` not, and what to do.

    `full_is_possible`: only the constant way is barred; a full clone, which copies all of the memory, can be made.
    """

    what: str
    why: str
    next_step: str
    full_is_possible: bool = False
