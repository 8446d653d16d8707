"""What is wanted of the figures, as data; and what they are on this host.

Ratios of two sizes are the first promises of the design: neither a source's pause nor a clone's start grows with RAM.
A target is judged by the p50 and, where it is a limit on a pause, by the p95 too; nothing fails when one is not met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .series import Entry, Scalar, find

SMALL, LARGE = 512, 4096

Find = Callable[[Sequence[Entry]], float | None]


@dataclass(frozen=True)
class Target:
    """One wish. `measured` returns None where the series that it needs were not measured."""

    words: str
    limit: float
    unit: str
    measured: Find
    at_most: bool = True

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


def _value(series: str, statistic: str, ram_mib: int, **dimensions: Scalar) -> Find:
    def measured(entries: Sequence[Entry]) -> float | None:
        entry = find(entries, series, ram_mib=ram_mib, **dimensions)
        return None if entry is None else float(getattr(entry, statistic))

    return measured


def _ratio(above: Find, below: Find) -> Find:
    def measured(entries: Sequence[Entry]) -> float | None:
        one, other = above(entries), below(entries)
        return one / other if one is not None and other else None

    return measured


def _growth(series: str, statistic: str, **dimensions: str) -> Find:
    return _ratio(
        _value(series, statistic, LARGE, **dimensions), _value(series, statistic, SMALL, **dimensions)
    )


def _above_ram(entries: Sequence[Entry]) -> float | None:
    whole = find(entries, "private_memory", ram_mib=SMALL, clones=1, process="qemu")
    ram = find(entries, "private_part", ram_mib=SMALL, clones=1, part="ram")
    return whole.p50 - ram.p50 if whole and ram else None


def _pause(words: str, series: str) -> list[Target]:
    return [
        *(
            Target(f"{words}, {SMALL} MiB, {p}", 30, "ms", _value(series, p, SMALL, method="handover"))
            for p in ("p50", "p95")
        ),
        *(
            Target(
                f"{words}, {LARGE} MiB : {SMALL} MiB, {p}", 1.5, "x", _growth(series, p, method="handover")
            )
            for p in ("p50", "p95")
        ),
    ]


TARGETS = (
    *_pause("source's pause", "source_pause"),
    *_pause("gap seen in the guest", "guest_gap"),
    Target(f"clone to ready, {LARGE} MiB : {SMALL} MiB, p50", 1.3, "x", _growth("clone_ready", "p50")),
    Target(f"clone, the host's part, {LARGE} MiB : {SMALL} MiB, p50", 1.3, "x", _growth("clone_host", "p50")),
    Target(
        f"clone, the host's part, {SMALL} MiB, p50: 12 a second",
        1000 / 12,
        "ms",
        _value("clone_host", "p50", SMALL),
    ),
    Target(
        "32 clones at once, time to ready, p95 : p50",
        2,
        "x",
        _ratio(
            _value("crowd_ready", "p95", SMALL, clones=32), _value("crowd_ready", "p50", SMALL, clones=32)
        ),
    ),
    Target("an idle clone's private memory above its RAM's", 20, "MiB", _above_ram),
    *(
        Target(
            f"pool, the host's part, {size} MiB, p50",
            20,
            "ms",
            _value("pool_host", "p50", size, way="waiting"),
        )
        for size in (SMALL, LARGE)
    ),
    *(
        Target(
            f"pool, the host's part, waiting : new, {size} MiB, p50",
            1 / 2,
            "x",
            _ratio(
                _value("pool_host", "p50", size, way="waiting"), _value("pool_host", "p50", size, way="new")
            ),
        )
        for size in (SMALL, LARGE)
    ),
    *(
        Target(
            f"cold boot : clone, both to ready, {size} MiB, p50",
            20,
            "x",
            _ratio(_value("cold_boot_ready", "p50", size), _value("clone_ready", "p50", size)),
            at_most=False,
        )
        for size in (SMALL, LARGE)
    ),
    Target(
        "identity, all items : the first six, p50",
        2,
        "x",
        _ratio(_value("identity", "p50", SMALL, items="all"), _value("identity", "p50", SMALL, items="six")),
    ),
    *(
        Target(
            f"{words} a stream : copying it, {stream}, p50",
            1 / 3,
            "x",
            _ratio(
                _value(series, "p50", 1024, stream=stream),
                _value("copy_speed", "p50", 1024, stream=stream),
            ),
            at_most=False,
        )
        for words, series in (("splitting", "split_speed"), ("joining", "join_speed"))
        for stream in ("qemu", "generated")
    ),
    *(
        Target(
            f"libvirt, virsh restore : clone's start, {size} MiB, p50",
            limit,
            "x",
            _ratio(_value("virsh_restore", "p50", size, save="tmpfs"), _value("clone_start", "p50", size)),
            at_most=False,
        )
        for size, limit in ((SMALL, 4), (2048, 12), (LARGE, 25))
    ),
    Target(
        f"libvirt, clone's start, {LARGE} MiB : {SMALL} MiB, p50", 1.3, "x", _growth("clone_start", "p50")
    ),
    Target(
        f"libvirt, memory of eight clones : restored, {SMALL} MiB",
        1 / 3,
        "x",
        _ratio(
            _value("eight_memory", "p50", SMALL, way="clone"),
            _value("eight_memory", "p50", SMALL, way="restore"),
        ),
    ),
)
