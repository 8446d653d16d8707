"""Disks from elsewhere are taken in whole, or refused with a remedy and nothing left."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from liveclone.errors import Conflict, NotFound, Refused, StoreError
from liveclone.images import importing
from liveclone.images.library import ImageLibrary
from liveclone.model.image import Image
from liveclone.units import MIB
from tests.conftest import Needs

BOOT_SECTOR = b"\xeb\x63\x90".ljust(510, b"\x90") + b"\x55\xaa"


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def take(file: Path, folder: Path, name: str = "mine", *, replace: bool = False) -> Image:
    return asyncio.run(importing.import_disk(file, name, folder, replace=replace))


@pytest.fixture
def raw(tmp_path: Path, needs: Needs) -> Path:
    needs("qemu-img")
    path = tmp_path / "it's a disk.raw"
    path.write_bytes(BOOT_SECTOR + b"loader")
    with path.open("r+b") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(b"far out")
    return path


@pytest.fixture
def disk(tmp_path: Path, raw: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def assert_nothing_left(images: Path) -> None:
    assert ImageLibrary(images).list() == []
    assert [path.name for path in images.glob("*/")] == []


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_becomes_an_image(kind: str, raw: Path, disk: Path, images: Path, tmp_path: Path) -> None:
    file = raw if kind == "raw" else disk
    before = file.read_bytes()
    image = take(file, images)
    assert ImageLibrary(images).load("mine") == image
    assert image.disk_bytes == 64 * MIB
    assert (image.boot.kernel, image.boot.initrd, image.has_agent) == ("", "", False)
    assert Path(image.disk) == images / "mine" / "disk.qcow2"
    assert json.loads(qemu_img("info", "--output=json", image.disk))["format"] == "qcow2"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image.disk, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == raw.read_bytes()
    assert file.read_bytes() == before
    assert Path(image.disk).stat().st_mode & 0o222 == 0
    assert sorted(path.name for path in images.iterdir()) == [".mine.lock", "mine"]


def test_a_disk_on_another_file_is_refused_with_the_command_that_helps(
    disk: Path, images: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", overlay)
    with pytest.raises(Refused) as caught:
        take(overlay, images)
    assert caught.value.code == "has-backing-file"
    assert str(disk) in caught.value.message
    assert f"qemu-img convert -O qcow2 {overlay}" in caught.value.next_step
    assert_nothing_left(images)


def test_a_disk_that_does_not_boot_is_refused(raw: Path, images: Path, tmp_path: Path) -> None:
    with raw.open("r+b") as file:
        file.write(bytes(440))  # the partition table and the signature stay, as on a disk for UEFI
    with pytest.raises(Refused, match="does not boot"):
        take(raw, images)
    packed = tmp_path / "no-boot.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, packed)
    with pytest.raises(Refused, match="does not boot"):
        take(packed, images)
    assert_nothing_left(images)


def test_other_refusals_leave_nothing(disk: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        take(tmp_path / "none", images)
    with pytest.raises(StoreError):
        take(tmp_path, images)
    for name in ("../mine", "", "x" * 300, "Mine"):
        with pytest.raises(Refused):
            take(disk, images, name)
    encrypted = tmp_path / "encrypted.qcow2"
    options = "encrypt.format=aes,encrypt.key-secret=s"  # the other one, LUKS, takes seconds to make a key
    argv: list[str | Path] = [
        "create",
        "-q",
        "--object",
        "secret,id=s,data=x",
        "-f",
        "qcow2",
        "-o",
        options,
        encrypted,
        "1M",
    ]
    qemu_img(*argv)
    with pytest.raises(Refused, match="encrypted"):
        take(encrypted, images)
    luks = bytearray(encrypted.read_bytes())
    assert luks[32:36] == b"\0\0\0\1"
    luks[35] = 2
    encrypted.write_bytes(luks)
    with pytest.raises(Refused, match="encrypted"):
        take(encrypted, images)
    corrupt = bytearray(disk.read_bytes())
    corrupt[79] |= 2
    (tmp_path / "corrupt.qcow2").write_bytes(corrupt)
    with pytest.raises(Refused, match="corrupt"):
        take(tmp_path / "corrupt.qcow2", images)
    assert not images.exists()


def test_a_name_is_taken_once_unless_it_may_go(disk: Path, raw: Path, images: Path) -> None:
    first = take(disk, images)
    with pytest.raises(Conflict):
        take(raw, images)
    assert ImageLibrary(images).load("mine") == first
    second = take(raw, images, replace=True)
    assert ImageLibrary(images).load("mine") == second != first


def test_a_full_disk_leaves_nothing(disk: Path, images: Path, tmp_path: Path, needs: Needs) -> None:
    needs("mount", root=True)
    images.mkdir()
    # A file system of its own in a mount namespace of its own; the import runs inside it.
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from liveclone.errors import StoreError\n"
        "from liveclone.images import importing\n"
        "try:\n"
        "    asyncio.run(importing.import_disk(Path(sys.argv[1]), 'mine', Path(sys.argv[2])))\n"
        "except StoreError as error:\n"
        "    print(error.code, [path.name for path in Path(sys.argv[2]).glob('*/')])\n"
    )
    inner = 'mount -t tmpfs -o size=96k none "$2" && exec "$1" -c "$4" "$3" "$2"'
    argv = ["unshare", "--mount", "sh", "-c", inner, "sh", sys.executable, str(images), str(disk), script]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
    assert told.stdout == "disk-full []\n", told.stderr
