"""QEMU's own tools open, check, read and write through the overlays that we render."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from liveclone.formats import qcow2
from liveclone.units import GIB, KIB, MIB
from tests.conftest import Needs

TIB = 1024 * GIB


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def look(path: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(qemu_img("info", "-U", "--output=json", path))
    return info


@pytest.fixture
def base(tmp_path: Path, needs: Needs) -> Path:
    needs("qemu-img", "qemu-io")
    path = tmp_path / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    subprocess.run(["qemu-io", "-c", "write -P 0x5a 0 64k", path], check=True, capture_output=True)
    return path


# 16 TiB in clusters of 64 KiB has 32768 L1 entries, 256 KiB; sizes around powers of two are where counts change.
CASES = st.sampled_from([512, 64 * KIB, 512 * MIB, 512 * MIB + 512, 4 * GIB, TIB, 3 * TIB + 512, 16 * TIB])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size_bytes=CASES | st.integers(1, 8 * TIB // 512).map(lambda sectors: sectors * 512),
    bits=st.sampled_from([16, 16, 16, 12, 14, 18, 21]),
    name=st.text("abc ä:=,%", min_size=1, max_size=60),
)
def test_qemu_agrees(tmp_path: Path, needs: Needs, size_bytes: int, bits: int, name: str) -> None:
    needs("qemu-img")
    backing = tmp_path / f"b-{name}"
    if not backing.exists():
        backing.touch()
    overlay = tmp_path / "overlay.qcow2"
    assume(size_bytes <= (1 << bits) * ((1 << bits) // 8) * (4 * MIB))  # as many L1 entries as QEMU takes
    overlay.write_bytes(qcow2.render_overlay(str(backing), "raw", size_bytes, bits))
    info = look(overlay)
    assert info["format"] == "qcow2"
    assert info["virtual-size"] == size_bytes
    assert info["cluster-size"] == 1 << bits
    assert info["backing-filename"] == str(backing)
    assert info["backing-filename-format"] == "raw"
    assert info["format-specific"]["data"]["compat"] == "1.1"
    assert not info["format-specific"]["data"]["corrupt"]
    check = json.loads(qemu_img("check", "--output=json", overlay))
    assert check["check-errors"] == 0
    assert "leaks" not in check and "corruptions" not in check


def test_qemu_reads_the_backing_file_and_writes_the_overlay(tmp_path: Path, base: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    overlay.write_bytes(qcow2.render_overlay(str(base), "qcow2", 64 * MIB))
    before = base.read_bytes()
    commands = [
        "read -P 0x5a 0 64k",
        "read -P 0 64k 64k",
        "write -P 0x11 4k 8k",
        "write -P 0x22 63M 64k",
        "read -P 0x11 4k 8k",
        "read -P 0x5a 0 4k",
        "flush",
    ]
    argv = ["qemu-io", *(word for command in commands for word in ("-c", command)), str(overlay)]
    story = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "verification failed" not in story.stdout
    assert base.read_bytes() == before
    assert "leaks" not in json.loads(qemu_img("check", "--output=json", overlay))


def test_a_disk_of_many_tebibytes_is_written_at_its_end(tmp_path: Path, base: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    size = 9 * TIB
    overlay.write_bytes(qcow2.render_overlay(str(base), "qcow2", size))
    last = size - 64 * KIB
    argv = ["qemu-io", "-c", f"write -P 0x33 {last} 64k", "-c", f"read -P 0x33 {last} 64k", str(overlay)]
    story = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "verification failed" not in story.stdout
    assert json.loads(qemu_img("check", "--output=json", overlay))["check-errors"] == 0


@pytest.mark.parametrize(
    "options", ["compat=1.1", "compat=0.10", "compat=1.1,lazy_refcounts=on", "cluster_size=4k"]
)
def test_what_qemu_img_makes_is_parsed(tmp_path: Path, base: Path, options: str) -> None:
    path = tmp_path / "other.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", path, "3G")
    header = qcow2.parse_header(path.read_bytes())
    info = look(path)
    assert header.size_bytes == info["virtual-size"] == 3 * GIB
    assert 1 << header.cluster_bits == info["cluster-size"]
    assert (header.backing, header.backing_format) == (str(base), "qcow2")
    assert header.version == (2 if "0.10" in options else 3)
    assert not header.encrypted and not header.has_data_file and not header.unknown_features


def test_features_of_qemu_img_are_seen(tmp_path: Path, needs: Needs) -> None:
    needs("qemu-img")
    outside, packed = tmp_path / "outside.qcow2", tmp_path / "zstd.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", outside, "1M")
    assert qcow2.parse_header(outside.read_bytes()).has_data_file
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", packed, "1M")
    header = qcow2.parse_header(packed.read_bytes())
    assert not header.unknown_features and not header.backing
