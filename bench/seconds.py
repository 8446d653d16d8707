"""What a load got done, second by second, and how long what it asked for took; pure.

    a piece of work    (began, ended): a request and its answer; so many pages written, and the next
    seconds            ... -2 -1 | 0 1 2 ...     the snapshot is at the line: its pause, or the moment it was asked for

The latency of a second is that of the work that began in it. One request after another, a client that waits a second for one
answer has asked once where it would have asked hundreds of times, so a single bad value would stand beside hundreds of good
ones of the same second, or alone in the next. So a piece of work that took longer than `every_s` counts as all those too
that would have begun meanwhile, `every_s` apart, and ended with it (HdrHistogram's correction for coordinated omission).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .series import percentile

Work = tuple[float, float]  # began, ended: seconds of one clock

ALMOST = 0.95  # of what was before is as before


def count(works: Sequence[Work], zero: float, seconds: range) -> dict[int, int]:
    """Return how many pieces ended in each second; `zero` is when second 0 begins."""
    ended: dict[int, int] = defaultdict(int)
    for _, end in works:
        ended[math.floor(end - zero)] += 1
    return {second: ended[second] for second in seconds}


def p99(works: Sequence[Work], zero: float, seconds: range, every_s: float) -> dict[int, float]:
    """Return in seconds how long 99 of 100 took at most, of those that began in each second."""
    lasted: dict[int, list[float]] = defaultdict(list)
    for began, ended in works:
        for number in range(max(1, int((ended - began) / every_s))):
            start = began + number * every_s
            lasted[math.floor(start - zero)].append(ended - start)
    return {second: percentile(lasted[second], 99) for second in seconds if lasted[second]}


def spread(samples: Sequence[tuple[float, float]], zero: float, seconds: range) -> dict[int, float]:
    """Return by how much a counter grew in each second, from samples (time, count): between two it grows evenly."""

    def at(time: float) -> float | None:
        for (before, low), (after, high) in itertools.pairwise(samples):
            if before <= time <= after:
                return low + (high - low) * (time - before) / ((after - before) or 1)
        return None

    grown = {}
    for second in seconds:
        low, high = at(zero + second), at(zero + second + 1)
        if low is not None and high is not None:
            grown[second] = high - low
    return grown


@dataclass(frozen=True)
class Dip:
    """What the snapshot did to a load."""

    before: float  # median second before the request
    worst: float  # the worst second since
    recovered_s: float  # from the request to the end of the last second before it is as before again
    lost_s: float  # what was not done in that time, in seconds of work


def measure_dip(rates: dict[int, float], requested: int) -> Dip:
    """Return the dip in what was done each second.

    Args:
        rates: by second, without a hole.
        requested: the second in which the snapshot was asked for; there is one before and one after it at least.
    """
    before = statistics.median(rate for second, rate in rates.items() if second < requested)
    since = {second: rate for second, rate in sorted(rates.items()) if second >= requested}
    worst = min(since, key=lambda second: since[second])
    if since[worst] >= ALMOST * before:
        return Dip(before, since[worst], 0.0, 0.0)
    again = next((s for s, rate in since.items() if s > worst and rate >= ALMOST * before), max(since) + 1)
    lost = sum(before - rate for second, rate in since.items() if second < again)
    return Dip(before, since[worst], again - requested, lost / before)
