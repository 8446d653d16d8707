"""What a snapshot does to a source that works, as a picture: a row for each load, a column for each way of capture.

    http    handover │ background │ stream       left:  done in a second, % of the median before
    memory  handover │ background │ stream       right: p99, ms, logarithmic
                                                 grey:  page faults of QEMU's, of the most that a second had

Lines join the medians of all runs, points are the single ones; a vertical line is the pause.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .series import Entry, Scalar, select
from .table import PICTURE

LOADS = ("http", "memory")
METHODS = ("handover", "background", "stream")
SHOWN = range(-12, 20)  # seconds; what is copied before the pause may take longer


def has(entries: Sequence[Entry]) -> bool:
    """Tell whether there is anything to draw."""
    return any(PICTURE in entry.dimensions for entry in entries)


def draw(pyplot: Any, entries: Sequence[Entry]) -> Any:
    """Return the figure, of the smallest size of RAM that was measured."""
    ram_mib = min(float(entry.dimensions["ram_mib"]) for entry in entries if entry.series == "after_rate")
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7), sharex=True, squeeze=False)
    for row, load in enumerate(LOADS):
        for column, method in enumerate(METHODS):
            chosen: dict[str, Scalar] = {"ram_mib": round(ram_mib), "load": load, "method": method}
            _draw_panel(panels[row][column], entries, chosen, last=column == len(METHODS) - 1)
    panels[0][0].legend(fontsize=8, loc="lower left")
    return figure


def _draw_panel(axes: Any, entries: Sequence[Entry], chosen: dict[str, Scalar], *, last: bool) -> None:
    axes.set_title(f"{chosen['load']}: {chosen['method']}")
    before = [value for entry in select(entries, "after_before", **chosen) for value in entry.values]
    if not before:
        return
    whole = statistics.median(before)
    faults = _by_second(select(entries, "after_faults", **chosen))
    most = max((statistics.median(values) for values in faults.values()), default=0.0)
    if most:
        heights = [100 * statistics.median(values) / most for values in faults.values()]
        axes.bar([second + 0.5 for second in faults], heights, 1.0, color="tab:gray", alpha=0.25, linewidth=0)
        axes.text(0.98, 0.02, f"faults: at most {most:,.0f} a second", transform=axes.transAxes, ha="right")
    _plot(axes, _by_second(select(entries, "after_rate", **chosen)), 100 / whole, "tab:blue", "done")
    slow = axes.twinx()
    slow.set_yscale("log")
    slow.grid(visible=False)
    _plot(slow, _by_second(select(entries, "after_p99", **chosen)), 1.0, "tab:red", "p99")
    axes.plot([], [], color="tab:red", label="p99 (right)")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(SHOWN.start, SHOWN.stop)
    axes.set_ylim(0, 130)
    axes.set_xlabel("s since the pause")
    axes.set_ylabel(f"% of {whole:,.0f} {select(entries, 'after_before', **chosen)[0].unit}")
    if last:
        slow.set_ylabel("p99, ms")


def _by_second(entries: Sequence[Entry]) -> dict[int, list[float]]:
    found = {int(entry.dimensions[PICTURE]): entry.values for entry in entries}
    return {second: found[second] for second in sorted(found) if second in SHOWN}


def _plot(axes: Any, seconds: dict[int, list[float]], scale: float, colour: str, label: str) -> None:
    for second, values in seconds.items():
        points = [value * scale for value in values]
        axes.scatter([second + 0.5] * len(points), points, s=8, alpha=0.35, color=colour, linewidths=0)
    axes.plot(
        [second + 0.5 for second in seconds],
        [statistics.median(values) * scale for values in seconds.values()],
        color=colour,
        label=label,
    )
