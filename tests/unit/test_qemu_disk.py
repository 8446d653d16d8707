"""The layers of a disk, as QEMU is told of them."""

from __future__ import annotations

from pathlib import Path

from liveclone.drivers.qemu import argv, disk
from liveclone.formats import qcow2
from liveclone.units import MIB


def add(path: Path, backing: str, backing_format: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(qcow2.render_overlay(backing, backing_format, MIB))
    return path


def test_the_chain_is_read_off_the_headers(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(512))
    middle = add(tmp_path / "snapshots" / "disk.qcow2", str(base), "raw")
    top = add(tmp_path / "machines" / "disk.qcow2", "../snapshots/disk.qcow2", "qcow2")
    chain = disk.read_chain(top)
    assert [(path.resolve(), layer_format) for path, layer_format in chain] == [
        (top, "qcow2"),
        (middle, "qcow2"),
        (base, "raw"),
    ]


def test_what_is_no_plain_file_is_left_to_qemu(tmp_path: Path) -> None:
    top = add(tmp_path / "disk.qcow2", "other.vmdk", "vmdk")
    assert disk.read_chain(top) == [(top, "qcow2")]
    top = add(tmp_path / "disk.qcow2", "nbd-localhost", "raw")
    top.write_bytes(top.read_bytes().replace(b"nbd-localhost", b"nbd:localhost"))
    assert disk.read_chain(top) == [(top, "qcow2")]


def test_a_layer_that_is_missing_or_damaged_is_still_named(tmp_path: Path) -> None:
    top = add(tmp_path / "disk.qcow2", "gone.qcow2", "qcow2")
    assert [path.name for path, _ in disk.read_chain(top)] == ["disk.qcow2", "gone.qcow2"]
    (tmp_path / "gone.qcow2").write_bytes(b"QFI\xfb and nothing else")
    assert [path.name for path, _ in disk.read_chain(top)] == ["disk.qcow2", "gone.qcow2"]


def test_the_page_cache_of_each_layer_is_kept(tmp_path: Path) -> None:
    node = argv.disk_node(
        [(tmp_path / "top", "qcow2"), (tmp_path / "middle", "qcow2"), (tmp_path / "base", "raw")]
    )
    assert node["node-name"] == argv.DISK
    layers = [node, node["backing"], node["backing"]["backing"]]
    assert [layer["driver"] for layer in layers] == ["qcow2", "qcow2", "raw"]
    assert [Path(layer["file"]["filename"]).name for layer in layers] == ["top", "middle", "base"]
    assert [layer["file"]["drop-cache"] for layer in layers] == [False] * 3
    assert "backing" not in layers[-1]
