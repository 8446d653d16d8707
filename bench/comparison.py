"""Two revisions beside each other: what was measured of both, and what of it differs by more than chance.

The values of one run come from the same boots and the same minutes, so they are not independent of one another: ten
clones of one source are one sample of that source. So of each run only its median counts, and the runs are compared
(significance.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import significance
from .series import Entry, Scalar
from .table import PICTURE, details, number

CHANCE = 0.05
# They differ a little from boot to boot, or say which revision it is.
_OUR_OWN = ("touched_mib", "liveclone")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One series under the same circumstances: the median of each run, of both revisions."""

    series: str
    dimensions: dict[str, Scalar]
    unit: str
    before: list[float]
    after: list[float]
    ratio: float | None  # of the medians, after : before; None: the one before is 0
    p: float
    verdict: str

    @property
    def is_certain(self) -> bool:
        """Whether chance alone seldom does this."""
        return self.p <= CHANCE


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    before: str  # revisions, as git describes them
    after: str
    pairs: int
    changes: list[Change]
    only_before: list[str]  # series that the other revision has not
    only_after: list[str]


def compare(
    names: tuple[str, str], before: Sequence[Sequence[Entry]], after: Sequence[Sequence[Entry]]
) -> Comparison:
    """Compare runs, each a list of entries, of two revisions.

    Args:
        names: of the revision before and of the one after.
    """
    old, new = _medians(before), _medians(after)
    return Comparison(
        before=names[0],
        after=names[1],
        pairs=min(len(before), len(after)),
        changes=[_change(entry, values, new[key][1]) for key, (entry, values) in old.items() if key in new],
        only_before=_names(old, new),
        only_after=_names(new, old),
    )


_Key = tuple[object, ...]
_Medians = dict[_Key, tuple[Entry, list[float]]]


def _medians(runs: Sequence[Sequence[Entry]]) -> _Medians:
    found: _Medians = {}
    for entry in (entry for run in runs for entry in run):
        if PICTURE not in entry.dimensions:
            found.setdefault(_key(entry), (entry, []))[1].append(entry.p50)
    return found


def _key(entry: Entry) -> _Key:
    same = {name: value for name, value in entry.dimensions.items() if name not in _OUR_OWN}
    return (entry.series, *sorted(same.items()))


def _names(one: _Medians, other: _Medians) -> list[str]:
    return list(dict.fromkeys(entry.series for key, (entry, _) in one.items() if key not in other))


def _change(entry: Entry, before: list[float], after: list[float]) -> Change:
    base, now = statistics.median(before), statistics.median(after)
    p = significance.rank_sum(before, after)
    if p <= CHANCE:
        verdict = "more" if now > base else "less"
    elif significance.least(len(before), len(after)) > CHANCE:
        verdict = "too few runs"
    else:
        verdict = "no change seen"
    return Change(
        series=entry.series,
        dimensions={name: value for name, value in entry.dimensions.items() if name not in _OUR_OWN},
        unit=entry.unit,
        before=before,
        after=after,
        ratio=now / base if base else None,
        p=p,
        verdict=verdict,
    )


def render(compared: Comparison) -> Group:
    """Return it as a table, and how much of it chance would do."""
    table = Table(
        title=f"{compared.before} beside {compared.after}, medians of {compared.pairs} runs each (sizes in MiB)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        collapse_padding=False,
    )
    for column in ("series", "unit", "", "RAM", "clones", "before", "after", "ratio", "p", ""):
        justify = "left" if column in ("series", "unit", "") else "right"
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for change in compared.changes:
        table.add_row(
            change.series,
            change.unit,
            " ".join(filter(None, (details(change.dimensions), str(change.dimensions.get("load", ""))))),
            *(str(change.dimensions.get(name, "")) for name in ("ram_mib", "clones")),
            *(number(statistics.median(values)) for values in (change.before, change.after)),
            "" if change.ratio is None else f"{change.ratio:.2f}",
            f"{change.p:.3f}",
            Text(change.verdict, style="bold" if change.is_certain else "dim"),
        )
    return Group(table, "", *_words(compared))


def _words(compared: Comparison) -> list[str]:
    many = len(compared.changes)
    certain = sum(change.is_certain for change in compared.changes)
    least = significance.least(compared.pairs, compared.pairs) if compared.pairs else 1.0
    lines = []
    if least > CHANCE:
        lines.append(f"With {compared.pairs} runs each nothing can be told from chance: --pairs 4 or more.")
    else:
        lines.append(
            f"{certain} of {many} changed (p ≤ {CHANCE:g}); by chance alone about {CHANCE * many:.1f} would seem to."
        )
    for words, names in (("before", compared.only_before), ("after", compared.only_after)):
        if names:
            lines.append(f"measured {words} alone: {', '.join(names)}")
    return lines
