"""What a load got done, second by second (bench/seconds.py), by the clock of made-up work."""

from __future__ import annotations

import dataclasses

import pytest

from bench import seconds
from bench.seconds import Dip

ZERO = 100.0
TENTH = [(ZERO - 3 + i / 10, ZERO - 3 + (i + 1) / 10 - 0.001) for i in range(60)]  # ten a second, -3 to 3


def test_work_counts_in_the_second_in_which_it_ended() -> None:
    assert seconds.count([(ZERO - 0.5, ZERO + 0.5), (ZERO + 0.5, ZERO + 0.6)], ZERO, range(-1, 2)) == {
        -1: 0,
        0: 2,
        1: 0,
    }
    assert set(seconds.count(TENTH, ZERO, range(-3, 3)).values()) == {10}


def test_a_wait_counts_for_all_that_would_have_been_asked_for_meanwhile() -> None:
    # One request that took two seconds among many of a hundredth: it began in second -1.
    quick = [(ZERO - 1 + i / 100, ZERO - 1 + (i + 1) / 100) for i in range(50)]
    slow = [(ZERO - 0.5, ZERO + 1.5)]
    found = seconds.p99([*quick, *slow], ZERO, range(-1, 2), every_s=0.01)
    assert found[-1] == pytest.approx(2.0, abs=0.02)
    assert found[0] == pytest.approx(1.49, abs=0.02)
    assert found[1] == pytest.approx(0.49, abs=0.02)


def test_quick_work_counts_once() -> None:
    assert seconds.p99([(ZERO, ZERO + 0.01)], ZERO, range(2), every_s=0.01) == {0: pytest.approx(0.01)}


def test_a_counter_grows_evenly_between_its_samples() -> None:
    samples = [(ZERO - 0.5, 0.0), (ZERO + 0.5, 10.0), (ZERO + 1.5, 10.0), (ZERO + 2.5, 30.0)]
    assert seconds.spread(samples, ZERO, range(-1, 3)) == {0: pytest.approx(5.0), 1: pytest.approx(10.0)}


RATES = dict.fromkeys(range(-5, 10), 100.0)


@pytest.mark.parametrize(
    ("slow", "dip"),
    [
        ({}, Dip(100.0, 100.0, 0.0, 0.0)),
        ({0: 96.0}, Dip(100.0, 96.0, 0.0, 0.0)),  # as before, all the time
        ({-1: 40.0, 0: 20.0, 1: 94.0}, Dip(100.0, 20.0, 3.0, 1.46)),
        (dict.fromkeys(range(-1, 10), 50.0), Dip(100.0, 50.0, 11.0, 5.5)),  # never again
    ],
)
def test_a_dip_lasts_until_the_load_does_95_percent_again(slow: dict[int, float], dip: Dip) -> None:
    found = seconds.measure_dip(RATES | slow, requested=-1)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(dip))
