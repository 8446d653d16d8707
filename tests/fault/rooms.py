"""Small file systems of a test's own, that can be filled to the last byte."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from liveclone.units import MIB


class Room:
    """A mounted file system with a file in it that takes all that is left, or nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all room but `leave_bytes`; to the last byte when that is 0."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            room = self.free_bytes - leave_bytes
            if room > 0:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(fd, size, room)
            for piece in (MIB, 4096, 1) if leave_bytes == 0 else ():
                with contextlib.suppress(OSError):
                    while True:
                        os.write(fd, bytes(piece))
        finally:
            os.close(fd)

    def fill_names(self) -> None:
        """Take every name (inode) that is left."""
        for number in range(os.statvfs(self.folder).f_ffree):
            (self.folder / f"filler-{number}").touch(exist_ok=False)

    def free(self) -> None:
        """Give all of it back."""
        for path in self.folder.glob("filler*"):
            path.unlink()


@contextlib.contextmanager
def open_tmpfs(folder: Path, size_bytes: int, names: int = 0) -> Iterator[Room]:
    """Mount a tmpfs; with `names`, so many files at most."""
    folder.mkdir(parents=True)
    options = f"size={size_bytes},mode=700" + (f",nr_inodes={names}" if names else "")
    with _mounted(["-t", "tmpfs", "-o", options, "liveclone-test"], folder):
        yield Room(folder)


@contextlib.contextmanager
def open_ext4(folder: Path, size_bytes: int) -> Iterator[Room]:
    """Mount an ext4 file system that is in a file beside `folder`."""
    folder.mkdir(parents=True)
    image = folder.with_name(f"{folder.name}.ext4")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    # -m 0: nothing is kept back for root, who we are.
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", image], check=True)
    try:
        with _mounted(["-o", "loop", str(image)], folder):
            (folder / "lost+found").rmdir()
            yield Room(folder)
    finally:
        image.unlink()


@contextlib.contextmanager
def _mounted(options: list[str], folder: Path) -> Iterator[None]:
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        # Lazily: whoever still has a file open in it is told of by the test, not by a mount that stays for ever.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
