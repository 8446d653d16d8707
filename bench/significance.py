"""Whether two small samples differ by more than chance: the exact rank-sum test.

    p = the share of all ways to deal the ranks to two samples of these sizes that lie as far from the middle as these do

It asks nothing of the values but that one run does not depend on another (no normal distribution; an outlier is but one
rank), and it is exact for few values, ties included (each has the mean of the ranks it takes up). Mann and Whitney, "On a
test of whether one of two random variables is stochastically larger than the other", 1947; Wilcoxon, 1945.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb


def rank_sum(one: Sequence[float], other: Sequence[float]) -> float:
    """Return p, two-sided: how likely samples of one and the same kind differ as much as these, or more.

    Raises:
        ValueError: a sample is empty.
    """
    if not one or not other:
        raise ValueError("a sample is empty")
    ranks = doubled_ranks([*one, *other])
    middle = len(one) * sum(ranks) / len(ranks)
    seen = abs(sum(ranks[: len(one)]) - middle)
    sums = _count_sums(ranks, len(one))
    as_far = sum(ways for total, ways in sums.items() if abs(total - middle) >= seen)
    return as_far / comb(len(ranks), len(one))


def least(one: int, other: int) -> float:
    """Return the smallest p that samples of these sizes can have: all of one above all of the other."""
    return min(1.0, 2 / comb(one + other, one))


def doubled_ranks(values: Sequence[float]) -> list[int]:
    """Return each value's rank from 1, times two: equal values share the mean of theirs, which may end in a half."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    for place, value in enumerate(ordered, 1):
        first.setdefault(value, place)
    counts = Counter(values)
    return [2 * first[value] + counts[value] - 1 for value in values]


def _count_sums(ranks: Sequence[int], size: int) -> Counter[int]:
    """Return how many choices of `size` ranks have each sum."""
    by_size: list[Counter[int]] = [Counter({0: 1}), *(Counter[int]() for _ in range(size))]
    for rank in ranks:
        for taken in range(size, 0, -1):
            for total, ways in by_size[taken - 1].items():
                by_size[taken][total + rank] += ways
    return by_size[size]
