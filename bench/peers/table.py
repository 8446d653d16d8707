"""The figures as text: a row for each peer and size, what could not be measured and why, and which programs were run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..series import Entry, find, select
from ..table import PLAIN, hosts, number
from .measure import MAKE, MEMORY, PAUSE, READY

COLUMNS = ("peer", "RAM", "touched", "make", "pause", "one", "least", "most", "first", "p50", "last", "MiB")
LEGEND = (
    "make: s, pause: ms, of what copies are started from. one, least, most: s from",
    "the request to the first correct answer, of one copy: its median and limits;",
    "first, p50, last: the same of {many} at once. MiB: private memory of each of",
    "these, or, with *, of one alone.",
)


@dataclass(frozen=True)
class Row:
    """What there is of one peer at one size."""

    peer: str
    ram_mib: int
    make: Entry | None
    pause: Entry | None
    one: Entry | None
    many: Entry | None
    memory: Entry | None


def rows(entries: Sequence[Entry]) -> list[Row]:
    """Return a row for each peer and size of which anything was measured, in the order in which that was done."""
    measured = [entry for entry in entries if entry.values and "peer" in entry.dimensions]
    ready = [entry for entry in measured if entry.series == READY]
    keys = dict.fromkeys((str(one.dimensions["peer"]), int(one.dimensions["ram_mib"])) for one in ready)
    return [_row(measured, peer, ram_mib) for peer, ram_mib in keys]


def _row(entries: Sequence[Entry], peer: str, ram_mib: int) -> Row:
    def one(series: str) -> Entry | None:
        return find(entries, series, peer=peer, ram_mib=ram_mib)

    def by_count(series: str) -> list[Entry]:
        found = select(entries, series, peer=peer, ram_mib=ram_mib)
        return sorted(found, key=lambda entry: entry.dimensions["clones"])

    ready, memory = by_count(READY), by_count(MEMORY)
    alone, several = [one for one in ready if count(one) == 1], [one for one in ready if count(one) > 1]
    return Row(
        peer,
        ram_mib,
        one(MAKE),
        one(PAUSE),
        alone[0] if alone else None,
        several[-1] if several else None,
        memory[-1] if memory else None,
    )


def count(entry: Entry) -> int:
    """Return how many copies were asked for at once."""
    return int(entry.dimensions["clones"])


def render(entries: Sequence[Entry]) -> Group:
    """Return all of it."""
    ours = [entry for entry in entries if "peer" in entry.dimensions]
    many = max((count(entry) for entry in ours), default=1)
    legend = [Text(line.format(many=many), style="dim") for line in LEGEND]
    return Group(_table(rows(ours)), *legend, "", *_left_out(ours), *_versions(ours), "", *hosts(ours))


def _table(found: Sequence[Row]) -> Table:
    table = Table(title="beside what else there is (sizes in MiB)", **PLAIN)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "peer" else "right", no_wrap=True)
    for row in found:
        table.add_row(row.peer, *_cells(row))
    return table


def _cells(row: Row) -> Iterator[str]:
    known = [entry for entry in (row.one, row.many) if entry is not None]
    yield str(row.ram_mib or "")
    yield str(known[0].dimensions.get("touched_mib") or "")
    for entry in (row.make, row.pause):
        yield "" if entry is None else number(entry.p50)
    one, many = row.one, row.many
    for value in (one.p50, min(one.values), max(one.values)) if one else (None,) * 3:
        yield "" if value is None else number(value)
    for value in (min(many.values), many.p50, max(many.values)) if many else (None,) * 3:
        yield "" if value is None else number(value)
    mark = "*" if row.memory is not None and count(row.memory) == 1 else ""
    yield "" if row.memory is None else number(row.memory.p50) + mark


def _left_out(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield a line for each peer and reason, with all that it is the reason for."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if obstacle := entry.dimensions.get("obstacle"):
            what = f"{ram_mib} MiB, " if (ram_mib := entry.dimensions["ram_mib"]) else ""
            what += f"{count(entry)} at once" if count(entry) > 1 else "one"
            found.setdefault((str(entry.dimensions["peer"]), str(obstacle)), []).append(what)
    for (peer, obstacle), missing in found.items():
        yield f"not measured: {peer} ({'; '.join(missing)}): {obstacle}"


def _versions(entries: Sequence[Entry]) -> Iterator[str]:
    known = {
        str(one.dimensions["peer"]): str(one.dimensions["version"])
        for one in entries
        if "version" in one.dimensions
    }
    for peer, version in known.items():
        yield f"{peer}: {version}"
