"""The scheduler tries a host if, and only if, the host would not refuse it for what it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from liveclone_nova import fitting, traits
from liveclone_nova.seal import Part

from .states import describe
from .test_fitting import HOST, WANTED

PART = Part(size_bytes=1, digest="p")


def test_a_host_says_what_it_can_load_in_placements_words() -> None:
    assert traits.of_host(HOST) == {
        "CUSTOM_LIVECLONE",
        "CUSTOM_LIVECLONE_KVM_10_0",
        "CUSTOM_LIVECLONE_CPU_SKYLAKE_SERVER",
    }


@pytest.mark.parametrize("cpu", ["Haswell-v4", "host-passthrough"])
@pytest.mark.parametrize(
    "host",
    [
        {},
        {"kind": "tcg"},
        {"hypervisor": "libvirt 11.3.0, qemu 10.0.9"},
        {"hypervisor": "libvirt 11.3.0, qemu 10.1.0"},
        {"cpu": "EPYC"},
    ],
)
def test_what_is_required_goes_with_what_the_host_judges(host: dict[str, Any], cpu: str) -> None:
    description = describe(PART, PART, cpu=cpu)
    other = dataclasses.replace(HOST, **host)
    fits = fitting.find_problems(description, WANTED, other) == []
    assert (traits.of_state(description) <= traits.of_host(other)) == fits
    assert traits.as_properties(description)["trait:CUSTOM_LIVECLONE"] == "required"


def test_what_is_not_ours_stays() -> None:
    ours = {"CUSTOM_LIVECLONE", "CUSTOM_LIVECLONE_TCG_9_2"}
    assert traits.find_ours({"HW_CPU_X86_AVX", "CUSTOM_LIVECLONES", *ours}) == ours


def test_a_server_that_was_restored_requires_nothing_of_one_host_any_more() -> None:
    kept = {"image_trait:CUSTOM_GOLD": "required", "image_trait:CUSTOM_LIVECLONE": "required"}
    metadata = kept | {"image_trait:CUSTOM_LIVECLONE_TCG_10_0": "required"}
    traits.forget(metadata)
    assert metadata == kept
