"""A state is loaded for its own image, on a machine and a host as those that it was captured on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from liveclone_nova import fitting
from liveclone_nova.seal import Part

from .states import DISK, OTHER, STATE, describe

PART = Part(size_bytes=1, digest="p")
HOST = fitting.Host(kind="kvm", hypervisor="libvirt 10.0.0, qemu 10.0.7", cpu="Skylake-Server", injects=False)
WANTED = fitting.Wanted(
    image_id=DISK,
    state_image=STATE,
    image={"os_hash_algo": "sha512", "os_hash_value": "d15c"},
    memory_mb=4,
    vcpus=1,
    root_gb=1,
)


def find(
    wanted: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **described: Any
) -> list[str]:
    return fitting.find_problems(
        describe(PART, PART, **described),
        dataclasses.replace(WANTED, **(wanted or {})),
        dataclasses.replace(HOST, **(host or {})),
    )


def test_the_captured_machine_fits_also_under_another_libvirt_and_a_later_release_of_its_qemu() -> None:
    assert find() == []
    assert find({"root_gb": 0}) == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"state_image": OTHER}, "copy of another"),
        ({"image_id": OTHER}, f"belongs to image {DISK}"),
        ({"image": {"os_hash_algo": "sha512", "os_hash_value": "0dd"}}, "not the one that was captured"),
        ({"image": {"os_hash_algo": "md5", "os_hash_value": "d15c"}}, "not the one that was captured"),
        ({"image": {}}, "not the one that was captured"),
        ({"memory_mb": 8}, "4 MiB of memory, and the flavor has 8"),
        ({"vcpus": 2}, "1 processors, and the flavor has 2"),
        ({"root_gb": 2}, "flavor's 2 GiB"),
    ],
)
def test_another_image_or_flavor_does_not(wanted: dict[str, Any], words: str) -> None:
    (problem,) = find(wanted)
    assert words in problem


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"kind": "tcg"}, "captured under kvm"),
        ({"hypervisor": "libvirt 11.3.0, qemu 10.1.0"}, "the host has libvirt 11.3.0, qemu 10.1.0"),
        ({"injects": True}, "inject_partition"),
    ],
)
def test_another_host_does_not(host: dict[str, Any], words: str) -> None:
    (problem,) = find(host=host)
    assert words in problem


def test_another_processor_matters_where_the_guest_sees_it() -> None:
    assert find(host={"cpu": "EPYC"}) == []
    (problem,) = find(host={"cpu": "EPYC"}, cpu="host-passthrough")
    assert "captured on a processor Skylake-Server" in problem
