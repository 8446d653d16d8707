"""Values while they come in, gathered into entries by what they were measured under."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from .series import Entry, Scalar

DIGITS = 3


@dataclass
class _Group:
    unit: str
    dimensions: dict[str, Scalar]
    touched_mib: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class Recorder:
    """Gathers values. `circumstances` (the host) go into the dimensions of every entry."""

    def __init__(self, circumstances: Mapping[str, Scalar]) -> None:
        self._circumstances = dict(circumstances)
        self._groups: dict[tuple[object, ...], _Group] = {}

    def add(
        self,
        series: str,
        unit: str,
        value: float,
        *,
        ram_mib: int,
        touched_mib: float,
        clones: int,
        **dimensions: Scalar,
    ) -> None:
        """Add one value to the entry with these dimensions.

        Args:
            touched_mib: RAM that the guest had ever written to. It differs a little from boot to boot: the
                entry gets the median.
        """
        dimensions = {"ram_mib": ram_mib, "clones": clones, **dimensions}
        key = (series, *sorted(dimensions.items()))
        group = self._groups.setdefault(key, _Group(unit, dimensions))
        group.touched_mib.append(touched_mib)
        group.values.append(round(value, DIGITS))

    def leave_out(
        self, series: str, unit: str, obstacle: str, *, ram_mib: int, clones: int, **dimensions: Scalar
    ) -> None:
        """Note that there is no value, and why: an entry without values, with `obstacle` among its dimensions."""
        dimensions = {"ram_mib": ram_mib, "clones": clones, **dimensions, "obstacle": obstacle}
        self._groups.setdefault((series, *sorted(dimensions.items())), _Group(unit, dimensions))

    def entries(self) -> list[Entry]:
        """Return what there is so far, ordered by series, then as measured."""
        found = [
            Entry(
                series=str(key[0]),
                dimensions={**group.dimensions, **_touched(group), **self._circumstances},
                unit=group.unit,
                values=group.values,
            )
            for key, group in self._groups.items()
        ]
        order = list(dict.fromkeys(entry.series for entry in found))
        return sorted(found, key=lambda entry: order.index(entry.series))


def _touched(group: _Group) -> dict[str, Scalar]:
    return {"touched_mib": round(statistics.median(group.touched_mib))} if group.touched_mib else {}
