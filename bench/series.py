"""Series as they stand in the file: a list of {"series", "dimensions", "unit", "values"}.

Every entry's dimensions say what was measured (`ram_mib`, `touched_mib`, `clones`, and what the series needs besides) and
where (processor, kernel, QEMU, acceleration), so entries of several hosts and days can be put into one list.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

Scalar = str | int | float


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The values that were measured under the same circumstances, in the order in which they came."""

    series: str
    dimensions: dict[str, Scalar]
    unit: str
    values: list[float]

    @property
    def p50(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        return percentile(self.values, 95)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, interpolated between the two nearest values; of a single value, that one."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def find(entries: Sequence[Entry], series: str, **dimensions: Scalar) -> Entry | None:
    """Return the first entry of `series` with these dimensions, or None."""
    return next(iter(select(entries, series, **dimensions)), None)


def select(entries: Sequence[Entry], series: str, **dimensions: Scalar) -> list[Entry]:
    """Return the entries of `series` with these dimensions."""
    wanted = dimensions.items()
    return [entry for entry in entries if entry.series == series and wanted <= entry.dimensions.items()]


def load(path: Path) -> list[Entry]:
    """Read a file that `save` wrote.

    Raises:
        OSError: it cannot be read. msgspec.DecodeError: it holds something else.
    """
    return msgspec.json.decode(path.read_bytes(), type=list[Entry])


def save(entries: Sequence[Entry], path: Path) -> None:
    """Write the file that `load` reads."""
    write(list(entries), path)


def write(value: object, path: Path) -> None:
    """Write a value as JSON: the old content of the file or the new, never half."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    temporary.replace(path)
