"""What a guest sends is unpacked inside of the folder that was asked for, or not at all."""

from __future__ import annotations

import os
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import pytest

from liveclone.engine import archive
from liveclone.errors import Corrupt, LivecloneError, StoreError


def member(name: str, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def stream(*members: tarfile.TarInfo, data: bytes = b"nasty") -> bytes:
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as made:
        for info in members:
            if info.isreg():
                info.size = len(data)
            made.addfile(info, BytesIO(data) if info.isreg() else None)
    return target.getvalue()


def unpack(folder: Path, data: bytes, old: str = "", new: str = "") -> tuple[str, ...]:
    read_fd, write_fd = os.pipe()

    def feed() -> None:
        with os.fdopen(write_fd, "wb") as pipe:
            try:
                pipe.write(data)
            except BrokenPipeError:
                return

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return archive.unpack(read_fd, folder, old, new)
    finally:
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    (tmp_path / "secret").write_text("untouched")
    return folder


def check_untouched(folder: Path) -> None:
    outside = folder.parent
    assert (outside / "secret").read_text() == "untouched"
    assert {path.name for path in outside.iterdir()} == {"target", "secret"}


@pytest.mark.parametrize("name", ["../secret", "/etc/x", "a/../../secret", "..", "tree/../../../secret"])
def test_a_name_that_leads_out(folder: Path, name: str) -> None:
    with pytest.raises(Corrupt) as caught:
        unpack(folder, stream(member(name)))
    assert "leads out" in caught.value.seen
    check_untouched(folder)


@pytest.mark.parametrize("target", ["..", "../secret", "/etc"])
def test_a_link_is_never_followed(folder: Path, target: str) -> None:
    link = member("a", type=tarfile.SYMTYPE, linkname=target)
    with pytest.raises(StoreError) as caught:
        unpack(folder, stream(link, member("a/secret")))
    assert caught.value.code == "in-the-way"
    check_untouched(folder)


def test_a_file_replaces_a_link_and_is_not_written_through_it(folder: Path) -> None:
    link = member("a", type=tarfile.SYMTYPE, linkname="../secret")
    unpack(folder, stream(link, member("a")))
    assert (folder / "a").read_bytes() == b"nasty"
    assert not (folder / "a").is_symlink()
    check_untouched(folder)


def test_a_link_that_was_there_before_is_not_followed_either(folder: Path) -> None:
    (folder / "there").symlink_to("..")
    with pytest.raises(StoreError):
        unpack(folder, stream(member("there/secret")))
    check_untouched(folder)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd"])
def test_a_hard_link_leads_nowhere_else(folder: Path, target: str) -> None:
    with pytest.raises(Corrupt):
        unpack(folder, stream(member("a", type=tarfile.LNKTYPE, linkname=target)))
    check_untouched(folder)


def test_devices_and_setuid_bits_stay_behind(folder: Path) -> None:
    left = unpack(
        folder,
        stream(
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("pipe", type=tarfile.FIFOTYPE),
            member("su", mode=0o6755, uid=0, gid=0),
            member("shared", type=tarfile.DIRTYPE, mode=0o3777),
        ),
    )
    assert left == ("null", "pipe")
    assert (folder / "su").stat().st_mode & 0o7777 == 0o755
    assert (folder / "shared").stat().st_mode & 0o7777 == 0o777


def test_a_folder_without_permissions_is_filled_first(folder: Path) -> None:
    unpack(folder, stream(member("closed", type=tarfile.DIRTYPE, mode=0o500), member("closed/file")))
    assert (folder / "closed" / "file").exists()
    assert (folder / "closed").stat().st_mode & 0o777 == 0o500


def test_the_topmost_name_is_changed_everywhere(folder: Path) -> None:
    unpack(
        folder,
        stream(
            member("old", type=tarfile.DIRTYPE, mode=0o755),
            member("old/old"),
            member("old/hard", type=tarfile.LNKTYPE, linkname="old/old"),
        ),
        *("old", "new"),
    )
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == ["new", "new/hard", "new/old"]
    assert (folder / "new" / "hard").stat().st_ino == (folder / "new" / "old").stat().st_ino


@pytest.mark.parametrize("data", [b"", b"no archive" * 200, stream(member("a"), data=b"x" * 5000)[:2000]])
def test_no_archive_or_half_of_one(folder: Path, data: bytes) -> None:
    with pytest.raises(Corrupt):
        unpack(folder, data)
    check_untouched(folder)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    with pytest.raises(LivecloneError) as caught:
        archive.pack(tmp_path / "nothing", "x", write_fd)
    assert str(tmp_path / "nothing") in caught.value.on
    os.close(read_fd)


def test_a_reader_that_goes_away_ends_the_packing(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5_000_000))
    read_fd, write_fd = os.pipe()
    thread = threading.Thread(target=archive.pack, args=(tmp_path, "x", write_fd))
    thread.start()
    os.read(read_fd, 1000)
    os.close(read_fd)
    thread.join(10)
    assert not thread.is_alive()
