"""What is wanted of the figures of pools, crowds and libvirt domains (bench/targets.py), judged by made-up ones."""

from __future__ import annotations

import pytest

from bench.series import Entry
from bench.targets import TARGETS

WORDS = "libvirt, "
POOL_WORDS = "pool, the host's part, "


def entry(series: str, value: float, ram_mib: int, **dimensions: str) -> Entry:
    return Entry(series=series, dimensions={"ram_mib": ram_mib, **dimensions}, unit="", values=[value])


def judge(entries: list[Entry], words: str = WORDS) -> dict[str, bool]:
    """Return by the target's words whether it is met, of those that were measured."""
    values = {target: target.measured(entries) for target in TARGETS if target.words.startswith(words)}
    return {
        target.words.removeprefix(words): target.is_met(value)
        for target, value in values.items()
        if value is not None
    }


@pytest.mark.parametrize(("ram_mib", "times"), [(512, 4), (2048, 12), (4096, 25)])
def test_a_clone_starts_so_many_times_faster_than_virsh_restores(ram_mib: int, times: int) -> None:
    clone = entry("clone_start", 100.0, ram_mib)
    slow = entry("virsh_restore", 1e6, ram_mib, save="disk")
    for restored_ms, met in ((100.0 * times + 1, True), (100.0 * times - 1, False)):
        judged = judge([clone, slow, entry("virsh_restore", restored_ms, ram_mib, save="tmpfs")])
        assert judged == {f"virsh restore : clone's start, {ram_mib} MiB, p50": met}


def test_a_clones_start_is_the_same_for_more_memory() -> None:
    for large_ms, met in ((129.0, True), (131.0, False)):
        judged = judge([entry("clone_start", 100.0, 512), entry("clone_start", large_ms, 4096)])
        assert judged == {"clone's start, 4096 MiB : 512 MiB, p50": met}


def test_eight_clones_take_a_third_of_the_memory() -> None:
    for clones_mib, met in ((99.0, True), (101.0, False)):
        entries = [entry("eight_memory", clones_mib, 512, way="clone")]
        judged = judge([*entries, entry("eight_memory", 300.0, 512, way="restore")])
        assert judged == {"memory of eight clones : restored, 512 MiB": met}


def test_a_clone_from_a_pool_takes_the_host_half_the_time_of_a_new_one_and_twenty_milliseconds() -> None:
    new = entry("pool_host", 39.0, 512, way="new")
    for waiting_ms, met in ((19.0, (True, True)), (19.6, (True, False)), (21.0, (False, False))):
        judged = judge([new, entry("pool_host", waiting_ms, 512, way="waiting")], POOL_WORDS)
        assert judged == {"512 MiB, p50": met[0], "waiting : new, 512 MiB, p50": met[1]}


def test_of_many_at_once_the_slow_ones_take_at_most_twice_as_long() -> None:
    for slow_s, met in ((3.9, True), (4.3, False)):
        ready = Entry(
            series="crowd_ready",
            dimensions={"ram_mib": 512, "clones": 32},
            unit="s",
            values=[2.0] * 20 + [slow_s] * 12,
        )
        assert judge([ready], "32 clones at once, ") == {"time to ready, p95 : p50": met}


def test_what_is_not_of_its_ram_is_what_a_clone_costs() -> None:
    ram = entry("private_part", 25.0, 512, part="ram")
    ram.dimensions["clones"] = 1
    for whole_mib, met in ((44.0, True), (46.0, False)):
        whole = entry("private_memory", whole_mib, 512, process="qemu")
        whole.dimensions["clones"] = 1
        assert judge([whole, ram], "an idle clone's ") == {"private memory above its RAM's": met}
