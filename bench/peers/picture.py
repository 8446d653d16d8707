"""The figures as a picture: bars, a peer each, in four panels of one SVG.

    first answer of one │ of many at once, the last of them
    private memory each │ making what copies are started from

Each size of RAM has its colour. What has no value has no bar, and its peer stands there all the same. Lengths are
linear: what is much less than the rest has a short bar, and its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..picture import caption, open_figure
from ..series import Entry
from .table import Row, count, rows

WIDTH, HEIGHT = 11, 8  # inches
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
Value = Callable[[Row], float | None]


def draw(entries: Sequence[Entry], path: Path) -> list[Path]:
    """Write the picture, and return where.

    Raises:
        Missing: matplotlib is not installed; nothing was written.
    """
    ours = [entry for entry in entries if "peer" in entry.dimensions]
    names = list(dict.fromkeys(str(entry.dimensions["peer"]) for entry in ours))
    found = rows(ours)
    about = next((entry for entry in ours if entry.values), None)
    many = max((count(entry) for entry in ours), default=1)
    panels: list[tuple[str, Value]] = [
        ("one copy: s to its first correct answer", lambda row: row.one.p50 if row.one else None),
        (f"{many} at once: s to the last one's", lambda row: max(row.many.values) if row.many else None),
        ("private memory of each, MiB", lambda row: row.memory.p50 if row.memory else None),
        ("making what they start from, s", lambda row: row.make.p50 if row.make else None),
    ]
    with open_figure(path, 2, 2, (WIDTH, HEIGHT), caption([about]) if about else "") as axes:
        for one, (title, value) in zip((*axes[0], *axes[1]), panels, strict=True):
            one.set_title(title)
            _draw_bars(one, names, found, value)
    return [path]


def _draw_bars(axes: Any, names: Sequence[str], found: Sequence[Row], value: Value) -> None:
    sizes = sorted({row.ram_mib for row in found if row.ram_mib})
    height = 0.8 / max(len(sizes), 1)
    labels: dict[str, tuple[Any, str]] = {}
    axes.set_yticks(range(len(names)), names)
    for row in found:
        width = value(row)
        if width is None:
            continue
        place = sizes.index(row.ram_mib) if row.ram_mib else 0
        colour = COLOURS[place % len(COLOURS)] if row.ram_mib else "tab:gray"
        y = names.index(row.peer) + place * height
        bars = axes.barh(y, width, height=height, color=colour)
        axes.text(width, y, f" {width:.3g}", va="center", fontsize=7)
        labels.setdefault(
            str(row.ram_mib), (bars, f"{row.ram_mib} MiB" if row.ram_mib else "no RAM of its own")
        )
    axes.set_ylim(len(names), -1)
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    if labels:
        axes.legend(*zip(*labels.values(), strict=True), fontsize=8)
