"""stub"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Obstacle:
    """Something of a domain that cannot be cloned. `full_is_possible`: the constant way alone is barred."""

    what: str
    why: str
    next_step: str
    full_is_possible: bool = False


def find_obstacles(xml: str) -> tuple[Obstacle, ...]:
    raise NotImplementedError
