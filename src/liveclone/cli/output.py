"""What goes to a terminal or a pipe: tables, facts, errors, JSON.

Results go to stdout, everything else to stderr. Text may come from a guest, so nothing but printable characters is
let through to a terminal. In a pipe nothing is folded, cut or coloured.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_FIELDS = (
    ("tried", "tried"),
    ("on", "on"),
    ("seen", "seen"),
    ("source_state", "source"),
    ("next_step", "next"),
)
_STYLES = {
    "running": "green",
    "ready": "green",
    "sealed": "green",
    "verified": "green",
    "ok": "green",
    "paused": "yellow",
    "starting": "yellow",
    "warning": "yellow",
    "warn": "yellow",
    "refuse": "red",
    "stopped": "dim",
    "crashed": "red",
    "failed": "red",
    "problem": "red",
    "quarantined": "red",
}


def clean(text: object) -> str:
    """Return `text` with what a terminal might obey replaced by question marks."""
    return "".join(char if char.isprintable() else " " if char in "\n\t" else "?" for char in str(text))


def print_json(value: object) -> None:
    """Print one value as JSON on stdout."""
    from ..model.base import encode

    sys.stdout.write(encode(value).decode())
    sys.stdout.flush()


def print_line(text: str) -> None:
    """Print a line on stdout."""
    sys.stdout.write(clean(text) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their headings, aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell), style=_style(cell)) for cell in row))
    _print(_console(), table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line; empty values are left out."""
    shown = [(name, clean(value)) for name, value in facts if value not in ("", None, ())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        sys.stdout.write(f"  {name:<{width}}  {value}\n")
    sys.stdout.flush()


def print_error(fields: dict[str, Any], *, as_json: bool) -> None:
    """Print an error's fields on stderr: one JSON object, or one block for people."""
    if as_json:
        sys.stderr.write(json.dumps(fields) + "\n")
    else:
        sys.stderr.write(render_error(fields))
    sys.stderr.flush()


def print_warning(text: str) -> None:
    """Print a line on stderr about what does no harm, but should be known."""
    sys.stderr.write(f"liveclone: warning: {clean(text)}\n")
    sys.stderr.flush()


def render_error(fields: dict[str, Any]) -> str:
    """Return the block that says what failed, and what a person needs next."""
    lines = [f"liveclone: {clean(fields['message'])}"]
    lines += [f"  {label:<7} {clean(fields[key])}" for key, label in _FIELDS if fields.get(key)]
    return "\n".join(lines) + "\n"


def render_age(since: datetime.datetime) -> str:
    """Return how long ago something was: 5 s, 3 min, 2 h, 4 days."""
    seconds = max(0, int((datetime.datetime.now(datetime.UTC) - since).total_seconds()))
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit} {name}"
    return f"{seconds // 86400} days"


def _style(cell: object) -> str:
    words = str(cell).split()
    return _STYLES.get(words[0], "") if words else ""


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width; rich would fold at 80.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)


def _print(console: Console, table: object) -> None:
    with console.capture() as capture:
        console.print(table)
    sys.stdout.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
    sys.stdout.flush()
