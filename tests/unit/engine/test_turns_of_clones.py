"""When clones of one command do what takes seconds of processor time: not while others come up, and not all at once."""

from __future__ import annotations

import itertools
import os

import pytest

from liveclone.engine.identify import rest_s
from liveclone.model.machine import Acceleration


def test_one_alone_waits_for_nobody() -> None:
    assert rest_s(0, 1, Acceleration.TCG) == 0


@pytest.mark.parametrize("acceleration", Acceleration)
@pytest.mark.parametrize("count", [2, 32])
def test_each_has_a_turn_when_all_are_up(acceleration: Acceleration, count: int) -> None:
    up_each_s = 1.0
    begins = [place * up_each_s + rest_s(place, count, acceleration) for place in range(count)]
    assert begins[0] >= (count - 1) * up_each_s
    turns = {round(late - early, 6) for early, late in itertools.pairwise(begins)}
    assert len(turns) == 1
    key_s = turns.pop() * max(1, (os.cpu_count() or 1) // 2)
    assert key_s > 1 if acceleration is Acceleration.TCG else 0 < key_s < 1
