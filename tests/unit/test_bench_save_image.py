"""The save image that live clones are measured against (bench/save_image.py): whole, and each time another clone's."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.save_image import SaveImage
from liveclone.drivers.libvirt import split
from liveclone.formats import domain_xml
from tests.unit.test_golden_streams import load

XML = """\
<domain type="qemu"><name>shop</name><uuid>11111111-1111-4111-8111-111111111111</uuid>
<memory unit="MiB">16</memory><os><type arch="x86_64" machine="q35">hvm</type></os>
<devices><disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/shop.qcow2"/>
<target dev="vda" bus="virtio"/></disk></devices></domain>"""


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """Return device state and memory image, of a domain that libvirt saved."""
    save, memory, state = (tmp_path / name for name in ("save", "memory", "state"))
    save.write_bytes(load("libvirt-raw"))
    split.split(save, memory, state, lambda _: XML)
    return state, memory


@pytest.fixture
def written(parts: tuple[Path, Path], tmp_path: Path) -> SaveImage:
    save = SaveImage(tmp_path / "whole.save", Path.touch, tmp_path)
    save.write(*parts)
    return save


def test_it_is_the_snapshot_whole(written: SaveImage, parts: tuple[Path, Path], tmp_path: Path) -> None:
    written.address()
    copy, memory, state = (tmp_path / name for name in ("copy", "memory-again", "state-again"))
    copy.write_bytes(written.path.read_bytes())
    split.split(copy, memory, state, lambda _: XML)
    assert any(memory.read_bytes())
    assert (state.read_bytes(), memory.read_bytes()) == tuple(part.read_bytes() for part in parts)


def test_each_time_it_is_another_clones(written: SaveImage, tmp_path: Path) -> None:
    stream = written.path.read_bytes()[split.read_header(written.path).stream_offset :]
    seen = []
    for _ in range(2):
        name = written.address()
        header = split.read_header(written.path)
        domain = domain_xml.parse_domain(header.xml)
        assert domain.name == name
        assert [disk.path for disk in domain.disks] == [str(tmp_path / f"{name}.qcow2")]
        assert (tmp_path / f"{name}.qcow2").exists()
        assert written.path.read_bytes()[header.stream_offset :] == stream
        seen.append((name, header.xml))
    assert seen[0] != seen[1]
