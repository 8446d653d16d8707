"""The figures as a picture: four panels in one SVG.

    pause and gap by RAM     │ time to ready by RAM: cold boot and clone
    clones a second by count │ private memory of an idle clone by count

Points are the single values, lines join their p50. It needs matplotlib, imported here alone and as late as possible. What
was measured second by second has a picture of its own beside this one (picture_after.py).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import picture_after
from .series import Entry, Scalar, select

WIDTH, HEIGHT = 11, 8  # inches
PAUSE_LIMIT_MS = 30

# Text stays text, and the same figures give the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "liveclone",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


class Missing(Exception):
    """There is no matplotlib."""


def draw(entries: Sequence[Entry], path: Path) -> list[Path]:
    """Write the pictures there is something for, and return where: `path`, and with `-after` behind its name.

    Raises:
        Missing: matplotlib is not installed; nothing was written.
    """
    drawn = []
    with _open_pyplot() as pyplot:
        if not all(entry.series.startswith(("after_", "cold_boot_")) for entry in entries):
            drawn.append(_save(_draw_four(pyplot, entries), path, caption(entries)))
        if picture_after.has(entries):
            beside = path.with_stem(f"{path.stem}-after")
            drawn.append(_save(picture_after.draw(pyplot, entries), beside, caption(entries)))
    return drawn


@contextlib.contextmanager
def open_figure(path: Path, rows: int, columns: int, size: tuple[float, float], words: str) -> Iterator[Any]:
    """Give axes to draw on, a list for each row; what is drawn is then written to `path`.

    Raises:
        Missing: matplotlib is not installed.
    """
    with _open_pyplot() as pyplot:
        figure, axes = pyplot.subplots(rows, columns, figsize=size)
        yield axes
        _save(figure, path, words)


@contextlib.contextmanager
def _open_pyplot() -> Iterator[Any]:
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("svg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise Missing("no picture: matplotlib is not installed (pip install matplotlib)") from error
    with matplotlib.rc_context(STYLE):
        try:
            yield pyplot
        finally:
            pyplot.close("all")


def _save(figure: Any, path: Path, words: str) -> Path:
    figure.suptitle(words, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path


def _draw_four(pyplot: Any, entries: Sequence[Entry]) -> Any:
    figure, ((pause, ready), (rate, weight)) = pyplot.subplots(2, 2, figsize=(WIDTH, HEIGHT))
    _draw_pause(pause, entries)
    _draw_ready(ready, entries)
    _draw_rate(rate, entries)
    _draw_weight(weight, entries)
    return figure


def _draw_pause(axes: Any, entries: Sequence[Entry]) -> None:
    axes.set_title("how long the source stands still")
    for method, colour in (("handover", "tab:blue"), ("background", "tab:orange")):
        _plot(axes, select(entries, "source_pause", method=method), "ram_mib", f"{method}: pause", colour)
        _plot(
            axes,
            select(entries, "guest_gap", method=method),
            "ram_mib",
            f"{method}: in the guest",
            colour,
            "--",
        )
    _plot(axes, select(entries, "guest_gap_idle"), "ram_mib", "in the guest, no snapshot", "tab:gray", ":")
    axes.axhline(
        PAUSE_LIMIT_MS, color="tab:red", linewidth=1, label=f"wanted: {PAUSE_LIMIT_MS} ms at 512 MiB"
    )
    _finish(axes, "RAM, MiB, nearly all of it filled", "ms")


def _draw_ready(axes: Any, entries: Sequence[Entry]) -> None:
    axes.set_title("time to ready")
    axes.set_yscale("log")
    _plot(axes, select(entries, "cold_boot_ready"), "ram_mib", "cold boot", "tab:gray")
    _plot(axes, select(entries, "clone_ready"), "ram_mib", "live clone", "tab:blue")
    _plot(
        axes, select(entries, "clone_host"), "ram_mib", "live clone, the host's part", "tab:green", scale=1e-3
    )
    _finish(axes, "RAM, MiB", "s")


def _draw_rate(axes: Any, entries: Sequence[Entry]) -> None:
    axes.set_title("clones started at once")
    _plot(axes, select(entries, "clones_per_second"), "clones", "ready a second", "tab:blue")
    _finish(axes, "clones", "1/s")


def _draw_weight(axes: Any, entries: Sequence[Entry]) -> None:
    axes.set_title("private memory of an idle clone")
    for name, colour in (("qemu", "tab:blue"), ("forwarder", "tab:orange")):
        _plot(axes, select(entries, "private_memory", process=name), "clones", name, colour)
    _finish(axes, "clones", "MiB")


def _plot(
    axes: Any,
    entries: Sequence[Entry],
    by: str,
    label: str,
    colour: str,
    line: str = "-",
    scale: float = 1.0,
) -> None:
    points = sorted(((_number(entry.dimensions[by]), entry) for entry in entries), key=lambda point: point[0])
    if not points:
        return
    for x, entry in points:
        values = [value * scale for value in entry.values]
        axes.scatter([x] * len(values), values, s=8, alpha=0.35, color=colour, linewidths=0)
    axes.plot(
        [x for x, _ in points], [entry.p50 * scale for _, entry in points], line, color=colour, label=label
    )


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_yscale() != "log":
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _number(value: Scalar) -> float:
    return float(value)


def caption(entries: Sequence[Entry]) -> str:
    """Return the host on which it was measured, in one line."""
    if not entries:
        return ""
    about = entries[0].dimensions
    words = [
        f"{about.get('cpus')} x {about.get('cpu_model')}",
        str(about.get("host_system")),
        f"Linux {about.get('host_kernel')}",
    ]
    if "hypervisor" in about:
        words.append(f"{about['hypervisor']} ({about.get('acceleration')})")
    return ", ".join(words)
