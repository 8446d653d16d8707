"""What `./dev bench --compare` makes of two revisions' runs (bench/significance.py, comparison.py, turns.py, plan.py)."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import comparison, plan, significance, turns
from bench.comparison import Change
from bench.series import Entry

VALUES = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def by_hand(one: list[int], other: list[int]) -> float:
    """Deal the ranks to two hands in every way there is, and count those as uneven as the given ones."""
    ranks = significance.doubled_ranks([*one, *other])
    middle = len(one) * sum(ranks) / len(ranks)
    seen = abs(sum(ranks[: len(one)]) - middle)
    hands = list(itertools.combinations(ranks, len(one)))
    return sum(abs(sum(hand) - middle) >= seen for hand in hands) / len(hands)


@given(one=VALUES, other=VALUES)
def test_p_is_the_share_of_all_hands_that_are_as_uneven(one: list[int], other: list[int]) -> None:
    assert significance.rank_sum(one, other) == pytest.approx(by_hand(one, other))
    assert significance.rank_sum(one, other) == pytest.approx(significance.rank_sum(other, one))


def test_p_is_that_of_the_tables() -> None:
    # Five beside five: all above all is 2 of 252; U = 2, the tables' limit at 5 %, is 8 of 252.
    assert significance.rank_sum([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert significance.rank_sum([1, 2, 3, 4, 7], [5, 6, 8, 9, 10]) == pytest.approx(8 / 252)
    assert significance.least(5, 5) == pytest.approx(2 / 252)
    assert significance.rank_sum([3, 3], [3, 3, 3]) == 1.0
    assert significance.least(1, 1) == 1.0


def test_equal_values_share_their_ranks() -> None:
    assert significance.doubled_ranks([5, 1, 5, 9]) == [5, 2, 5, 8]


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError):
        significance.rank_sum([], [1.0])


def run(*values: float, series: str = "pause", **dimensions: str | int) -> list[Entry]:
    return [Entry(series=series, dimensions={"ram_mib": 512, **dimensions}, unit="ms", values=list(values))]


def only(compared: comparison.Comparison) -> Change:
    (change,) = compared.changes
    return change


def test_what_counts_of_a_run_is_its_median_so_that_many_values_of_few_boots_prove_nothing() -> None:
    before = [run(*range(100, 200)), run(*range(100, 200))]
    after = [run(*range(200, 300)), run(*range(200, 300))]
    change = only(comparison.compare(("a", "b"), before, after))
    assert change.before == [149.5, 149.5]
    assert change.ratio == pytest.approx(249.5 / 149.5)
    assert not change.is_certain
    assert change.verdict == "too few runs"


@pytest.mark.parametrize(
    ("after", "verdict"),
    [([5, 6, 7, 8], "more"), ([0.1, 0.2, 0.3, 0.4], "less"), ([0.5, 2.5, 3.5, 5], "no change seen")],
)
def test_four_runs_each_tell_a_change_from_chance(after: list[float], verdict: str) -> None:
    before = [run(value) for value in (1.0, 2.0, 3.0, 4.0)]
    change = only(comparison.compare(("a", "b"), before, [run(value) for value in after]))
    assert change.verdict == verdict
    assert change.is_certain == (verdict != "no change seen")


def test_only_what_was_measured_under_the_same_circumstances_is_compared() -> None:
    before = [run(1.0, touched_mib=400, liveclone="1") + run(1.0, method="stream") + run(1.0, series="gone")]
    after = [run(2.0, touched_mib=401, liveclone="2") + run(1.0, method="other") + run(1.0, second=3)]
    compared = comparison.compare(("a", "b"), before, after)
    assert only(compared).dimensions == {"ram_mib": 512}
    assert compared.only_before == ["pause", "gone"]
    assert compared.only_after == ["pause"]


def test_a_median_of_nothing_has_no_ratio() -> None:
    assert only(comparison.compare(("a", "b"), [run(0.0)], [run(1.0)])).ratio is None


def test_each_pair_begins_with_the_one_that_the_pair_before_ended_with() -> None:
    before, after = (turns.Side(name, Path(), Path(), Path()) for name in "ab")
    assert "".join(side.name for side in turns.order(before, after, 3)) == "abbaab"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--quick", "--only", "pauses", "--only", "formats", "--sizes", "512,1024", "--repeats", "3"],
        ["--full"],
    ],
)
def test_a_plan_is_asked_for_again_by_the_same_words(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    assert plan.render(parser.parse_args(words)) == words
