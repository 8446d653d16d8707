"""The table of QEMU's deaths has every point at which there is a QEMU: a new one cannot be forgotten."""

from __future__ import annotations

from tests.fault.deaths import CONCERNED, NO_QEMU, TABLE
from tests.machines import find_points


def test_every_point_has_its_deaths_or_a_reason() -> None:
    demanded = {
        (point, whose) for first in CONCERNED for point in find_points(first) for whose in CONCERNED[first]
    }
    covered = {(death.point, death.whose) for death in TABLE}
    assert demanded - covered == set(NO_QEMU)
    assert not covered & set(NO_QEMU)


def test_the_table_names_only_points_that_there_are() -> None:
    points = set(find_points())
    assert {death.point for death in TABLE} <= points
    assert {point.partition(".")[0] for point in points} == set(CONCERNED)
