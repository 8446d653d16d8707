"""A disk in one layer holds what the guest reads, and not what lies hidden under it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from liveclone.errors import StoreError
from liveclone.formats import qcow2
from liveclone.host import flatten
from liveclone.units import KIB, MIB

CLUSTER = 64 * KIB


def io(path: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    ended = subprocess.run(
        ["qemu-io", "-f", "qcow2", *words, path], check=True, capture_output=True, text=True
    )
    assert "failed" not in ended.stdout
    return ended.stdout


@pytest.fixture
def top(needs: Callable[..., None], tmp_path: Path) -> Path:
    """Two layers: the upper one covers two of the three clusters that the lower one has."""
    needs("qemu-img", "qemu-io")
    below, above = tmp_path / "below.qcow2", tmp_path / "above.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", below, "8M"], check=True)
    io(below, *(f"write -P {0x41 + index} {index * CLUSTER} {CLUSTER}" for index in range(3)))
    above.write_bytes(qcow2.render_overlay(str(below), "qcow2", 8 * MIB))
    io(above, f"write -P 0x58 0 {CLUSTER}", f"write -z {CLUSTER} {CLUSTER}")
    return above


def test_what_is_covered_stays_behind(top: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat.qcow2"
    asyncio.run(flatten.flatten(top, flat))
    data = flat.read_bytes()
    header = qcow2.parse_header(data[: qcow2.HEADER_BYTES])
    assert (header.backing, header.size_bytes) == ("", 8 * MIB)
    assert b"A" * 512 not in data
    assert b"B" * 512 not in data
    assert len(data) < 8 * CLUSTER
    io(
        flat,
        f"read -P 0x58 0 {CLUSTER}",
        f"read -P 0 {CLUSTER} {CLUSTER}",
        f"read -P 0x43 {2 * CLUSTER} {CLUSTER}",
    )


def test_a_layer_that_is_missing_is_an_error(top: Path, tmp_path: Path) -> None:
    (tmp_path / "below.qcow2").unlink()
    with pytest.raises(StoreError):
        asyncio.run(flatten.flatten(top, tmp_path / "flat.qcow2"))
