"""Disks that qemu-img made: what was written is read back through layers, compressed clusters and odd sizes."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from liveclone.engine import search
from liveclone.errors import Unsupported
from liveclone.formats.needles import Secret
from liveclone.host.disk_layers import Disk, find_layers

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="no qemu-img")

MIB = 1024 * 1024
RANDOM = random.Random(3)
SIZE = 8 * MIB
SECRET = RANDOM.randbytes(32)


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def write(image: Path, offset: int, data: bytes) -> None:
    source = image.with_suffix(".data")
    source.write_bytes(data)
    commands = ["-c", f"write -s {source} {offset} {len(data)}"]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(image)], check=True, stdout=subprocess.DEVNULL)


def read_all(image: Path) -> bytes:
    raw = image.with_suffix(".raw")
    qemu_img("convert", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.fixture(params=["plain", "compressed", "zstd", "subclusters", "small clusters", "version 2", "raw"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Return an image with bytes here and there, and its format."""
    content = bytearray(SIZE)
    for _ in range(20):
        at = RANDOM.randrange(SIZE - 70000)
        content[at : at + RANDOM.randrange(1, 70000)] = RANDOM.randbytes(50)
    raw = tmp_path / "base.img"
    raw.write_bytes(content)
    if request.param == "raw":
        return raw, "raw"
    options = {
        "compressed": ["-c"],
        "zstd": ["-c", "-o", "compression_type=zstd"],
        "subclusters": ["-o", "extended_l2=on"],
        "small clusters": ["-o", "cluster_size=512"],
        "version 2": ["-o", "compat=0.10"],
    }.get(request.param, [])
    image = tmp_path / "base.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
    return image, "qcow2"


def test_a_disk_reads_as_its_guest_reads_it(tmp_path: Path, base: tuple[Path, str]) -> None:
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base[0], "-F", base[1], middle)
    write(middle, 123 * 512, RANDOM.randbytes(300 * 1024))
    qemu_img(
        "create",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4096",
        "-b",
        middle,
        "-F",
        "qcow2",
        top,
        SIZE + 1234 * 512,
    )
    write(top, 2 * MIB - 1024, RANDOM.randbytes(2048))
    subprocess.run(["qemu-io", "-c", "write -z 3M 64k", str(top)], check=True, stdout=subprocess.DEVNULL)
    write(top, SIZE - 512, RANDOM.randbytes(1024))
    layers = find_layers(top)
    assert layers == [top, middle, base[0]]
    for index, image in enumerate(layers):
        expected = read_all(image)
        with Disk(layers[index:]) as disk:
            assert disk.read(0, len(expected)) == expected
            for at, data in disk.read_own(100):
                assert expected[at : at + len(data)] == data
            if image != base[0]:
                assert sum(len(data) for _, data in disk.read_own(0)) < MIB, "it reads what is not its own"


@pytest.mark.parametrize("options", [[], ["-o", "compat=0.10"], ["-o", "cluster_size=512"], ["-c"]], ids=str)
def test_secrets_are_found_in_every_layer(tmp_path: Path, options: list[str]) -> None:
    """In two clusters that are apart in the file; written over since; in a cluster that is compressed."""
    content = bytearray(SIZE)
    compressed, split, hidden, between = (RANDOM.randbytes(20) for _ in range(4))
    content[5 * MIB + 17 : 5 * MIB + 37] = compressed
    (tmp_path / "raw").write_bytes(content)
    base, top = tmp_path / "base" / "disk.qcow2", tmp_path / "top" / "disk.qcow2"
    base.parent.mkdir()
    top.parent.mkdir()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, tmp_path / "raw", base)
    write(base, 2 * MIB, RANDOM.randbytes(512))  # the later half gets the earlier place in the file
    write(base, 2 * MIB - 512, RANDOM.randbytes(502) + split[:10])
    write(base, 2 * MIB, split[10:] + RANDOM.randbytes(502))
    write(base, 6 * MIB, hidden.ljust(512, b"\0"))
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    write(top, 6 * MIB, bytes(65536))
    write(base, 4 * MIB - 512, between[:10].rjust(512, b"\0"))
    write(top, 4 * MIB, between[10:].ljust(65536, b"\0"))
    write(top, 7 * MIB, RANDOM.randbytes(65536))
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    planted = {
        "compressed": compressed,
        "split": split,
        "hidden": hidden,
        "between": between,
        "absent": RANDOM.randbytes(20),
    }
    secrets = [Secret(name, value) for name, value in planted.items()]
    found = search.search(search.Places(empty, empty, find_layers(top)), secrets)
    parts = {
        hit.secret: {one.part: one.offset for one in found.found if one.secret == hit.secret}
        for hit in found.found
    }
    assert parts["compressed"]["disk base"] == 5 * MIB + 17
    assert parts["split"] == {"disk base": 2 * MIB - 10}
    assert parts["hidden"]["disk base"] == 6 * MIB
    assert parts["between"] == {"disk top": 4 * MIB - 10}
    assert set(parts) == {"compressed", "split", "hidden", "between"}
    assert found.secrets == 5 and not found.is_clean


def test_holes_of_a_memory_image_are_passed_over(tmp_path: Path) -> None:
    memory, empty = tmp_path / "memory", tmp_path / "empty"
    empty.write_bytes(b"")
    with memory.open("wb") as file:
        file.truncate(1024 * MIB)
        for at in (0, 4 * MIB - 16, 512 * MIB - 10, 1024 * MIB - 32):
            file.seek(at)
            file.write(SECRET)
    found = search.search(
        search.Places(memory, empty, []), [Secret("s", SECRET), Secret("short", b"1234567")]
    )
    (hit,) = found.found
    assert (hit.part, hit.offset, hit.form, hit.places) == ("memory", 0, "raw", 8)
    assert found.not_searched == ("short",)
    assert found.searched_bytes["memory"] < MIB


def test_an_encrypted_layer_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    with image.open("r+b") as file:
        file.seek(32)
        file.write((1).to_bytes(4, "big"))
    with pytest.raises(Unsupported):
        Disk([image])
