"""The figures as text: a table of the series, a table of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .series import Entry, Scalar, find, select
from .targets import TARGETS, Target

# Dimensions that differ between entries and have no column of their own.
DETAILS = ("method", "process", "items", "item", "stream", "save", "way", "part")
PICTURE = "second"  # entries that have it are for a picture alone
AFTER = "after_"  # these have a table of their own
# Eighty columns are enough.
PLAIN: dict[str, Any] = {
    "title_justify": "left",
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "padding": 0,
}
HOST = ("cpu_model", "cpus", "host_memory_mib", "host_system", "host_kernel", "hypervisor", "acceleration")


def render(entries: Sequence[Entry]) -> Group:
    """Return the tables, with the host under them."""
    measured = [entry for entry in entries if entry.values]
    tables = [_series([entry for entry in measured if not entry.series.startswith(AFTER)])]
    if select(measured, "after_before"):
        tables.append(_dips(measured))
    tables.append(_targets(measured))
    return Group(*(part for table in tables for part in (table, "")), *hosts(measured))


def _dips(entries: Sequence[Entry]) -> Table:
    table = Table(title="a source that works, medians", **PLAIN)
    for column in ("load", "captured by", "RAM", "n", "before", "", "worst s", "95 % after", "lost"):
        table.add_column(column, justify="left" if column in ("load", "captured by", "") else "right")
    for before in select(entries, "after_before"):
        same = {name: before.dimensions[name] for name in ("load", "method", "ram_mib")}
        others = [find(entries, f"after_{name}", **same) for name in ("worst", "recovered", "lost")]
        table.add_row(
            *(str(same[name]) for name in ("load", "method", "ram_mib")),
            str(len(before.values)),
            number(before.p50),
            before.unit,
            *(f"{number(entry.p50)} {entry.unit}" if entry else "" for entry in others),
        )
    return table


def _series(entries: Sequence[Entry]) -> Table:
    table = Table(title="measured (sizes in MiB)", **PLAIN)
    for column in ("series", "unit", "", "RAM", "touched", "clones", "n", "p50", "p95", "least", "most"):
        table.add_column(
            column, justify="left" if column in ("series", "unit", "") else "right", no_wrap=True
        )
    before = ""
    for entry in order(entries):
        if before and entry.series != before:
            table.add_section()
        table.add_row(
            entry.series if entry.series != before else "",
            entry.unit,
            details(entry.dimensions),
            *(str(entry.dimensions.get(name, "")) for name in ("ram_mib", "touched_mib", "clones")),
            str(len(entry.values)),
            *(number(value) for value in (entry.p50, entry.p95, min(entry.values), max(entry.values))),
        )
        before = entry.series
    return table


def order(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries by series, and within one by what was measured."""
    names = list(dict.fromkeys(entry.series for entry in entries))

    def key(entry: Entry) -> tuple[int, str, float, float]:
        ram_mib, clones = (float(entry.dimensions.get(name, 0)) for name in ("ram_mib", "clones"))
        return names.index(entry.series), details(entry.dimensions), ram_mib, clones

    return sorted(entries, key=key)


def details(dimensions: Mapping[str, Scalar]) -> str:
    """Return the dimensions that have no column of their own."""
    return " ".join(str(dimensions[name]) for name in DETAILS if name in dimensions)


def _targets(entries: Sequence[Entry]) -> Table:
    table = Table(title="wanted", **PLAIN)
    for column in ("what", "wanted", "measured", ""):
        table.add_column(column, justify="right" if column in ("wanted", "measured") else "left")
    for target in TARGETS:
        value = target.measured(entries)
        table.add_row(
            target.words,
            f"{'≤' if target.at_most else '≥'} {target.limit:.3g} {target.unit}",
            "" if value is None else f"{number(value)} {target.unit}",
            verdict(target, value),
        )
    return table


def verdict(target: Target, value: float | None) -> Text:
    """Return one word, in its colour."""
    if value is None:
        return Text("not measured", style="dim")
    return Text("met", style="green") if target.is_met(value) else Text("not met", style="red")


def number(value: float) -> str:
    """Return three digits that mean something, or all those before the point."""
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def hosts(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each host on which these were measured."""
    lines = [
        ", ".join(f"{name} {entry.dimensions[name]}" for name in HOST if name in entry.dimensions)
        for entry in entries
    ]
    return list(dict.fromkeys(lines))
