"""Compare all members of a family with one another. Pure: values in, equalities out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from ..model.audit import Equal, Member, Role


def compare(members: Sequence[Member]) -> tuple[int, tuple[Equal, ...]]:
    """Return the number of pairs that were compared, and each value that both of a pair have.

    The source is what it was in its snapshot: these two are no pair.
    """
    holders: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for member in members:
        for what, digest in member.digests.items():
            holders[what, digest].append(member)
    equal = [
        Equal(what=what, first=first.name, second=second.name)
        for (what, _), found in holders.items()
        for first, second in combinations(found, 2)
        if is_pair(first, second)
    ]
    pairs = sum(is_pair(first, second) for first, second in combinations(members, 2))
    return pairs, tuple(equal)


def is_pair(first: Member, second: Member) -> bool:
    """Whether two members have to differ."""
    return {first.role, second.role} != {Role.SNAPSHOT, Role.SOURCE}
