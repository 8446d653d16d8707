"""What an image is asked to be, checked and reduced to a digest.

The digest is the cache's key: the same suite, packages, files (their contents, not their paths), script, options, agent and
builder give the same image. The image's name and the mirror are not part of it; nor is the state of the archive, so an image
does not age by itself (`fresh` builds it anew).
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .. import ids
from ..errors import NotFound, Refused
from ..units import GIB, render_size

# With 1 GiB the base system, its package cache while more is installed and the journal fit.
SMALLEST_DISK = 1 * GIB
_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?([=/][A-Za-z0-9.+:~-]+)?")


class Secret:
    """A text that is printed as stars."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


@dataclass(frozen=True)
class ImageSpec:
    """An image to build.

    Args:
        suite: Debian's release by code name.
        packages: what apt installs besides the base system.
        disk_bytes: virtual size; the file is sparse.
        files: pairs of a host path (file or folder) and an absolute guest path; they belong to root there.
        script: run in the guest's root as root, by its own #! line, after packages and files are in place.
        cmdline: added to the kernel's command line.
        root_password: for the console; without it nobody can log in there.
        mirror: where to get Debian from; the host's own by default.
        kernel: package of the kernel. It must know VMGENID.
    """

    name: str
    suite: str = "trixie"
    packages: tuple[str, ...] = ()
    disk_bytes: int = 4 * GIB
    files: tuple[tuple[Path, str], ...] = ()
    script: Path | None = None
    cmdline: str = ""
    root_password: Secret | None = None
    mirror: str = ""
    kernel: str = "linux-image-cloud-amd64"

    def check(self) -> None:
        """See that the image can be asked for.

        Raises:
            Refused: a value has no meaning. NotFound: a file to copy, or the script, is not there.
        """
        ids.check_name(self.name, "name of an image")
        if not _SUITE.fullmatch(self.suite):
            raise _refuse(f"{self.suite!r} is not a suite of Debian", "use a code name, like trixie")
        for package in (*self.packages, self.kernel):
            if not _PACKAGE.fullmatch(package):
                raise _refuse(f"{package!r} is not a package's name", "apt search WORD")
        if self.disk_bytes < SMALLEST_DISK or self.disk_bytes % 4096:
            raise _refuse(
                f"a disk of {render_size(self.disk_bytes)} is too small", "use 1G or more, in whole KiB"
            )
        if "\n" in self.cmdline or "\0" in self.cmdline:
            raise _refuse("the kernel's command line is one line", "remove the line break")
        if self.root_password is not None and not re.fullmatch(r"[^\n:\0]+", self.root_password.reveal()):
            raise _refuse("the password is empty or has a colon or a line break", "choose another one")
        for source, target in self.files:
            _check_target(target)
            if not source.exists():
                raise _missing(source, "copying a file into the image")
        if self.script is not None and not self.script.is_file():
            raise _missing(self.script, "running a script in the image")

    def digest(self, *ingredients: str) -> str:
        """Return the key of this image's recipe, SHA-256 in hex.

        Args:
            ingredients: digests and versions of whatever else goes into the image.
        """
        copied = [
            [target, *_describe(path, source)] for source, target in self.files for path in walk(source)
        ]
        script = hashlib.sha256(self.script.read_bytes()).hexdigest() if self.script else ""
        password = (
            hashlib.sha256(self.root_password.reveal().encode()).hexdigest() if self.root_password else ""
        )
        recipe = [
            *(self.suite, sorted(set(self.packages)), self.disk_bytes, copied, script, self.cmdline),
            *(password, self.kernel, ingredients),
        ]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def parse_copy(text: str) -> tuple[Path, str]:
    """Return the pair that "HOST:GUEST" names.

    Without a guest path it is the host's; one that ends in a slash is the folder to copy into.

    Raises:
        Refused: the guest path is not absolute, or leads upwards.
    """
    source, _, target = text.partition(":")
    path = Path(source).expanduser()
    target = target or str(path.absolute())
    if target.endswith("/"):
        target += path.name
    _check_target(target)
    return path, target


def walk(source: Path) -> Iterator[Path]:
    """Yield `source` and, of a folder, all in it, in a fixed order."""
    yield source
    if source.is_dir() and not source.is_symlink():
        for path in sorted(source.iterdir()):
            yield from walk(path)


def _describe(path: Path, source: Path) -> tuple[str, int, str]:
    name = path.relative_to(source).as_posix()
    mode = path.lstat().st_mode if path != source else path.stat().st_mode
    if stat.S_ISLNK(mode):
        content = str(path.readlink())
    elif stat.S_ISREG(mode):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        content = ""
    return name, mode, content


def _check_target(target: str) -> None:
    path = PurePosixPath(target)
    if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/") or "\0" in target:
        raise _refuse(f"{target!r} is not a path in the guest", "use an absolute one, like /opt/app")


def _refuse(message: str, advice: str) -> Refused:
    return Refused(message, code="bad-image-spec", tried="describing an image", next_step=advice)


def _missing(path: Path, tried: str) -> NotFound:
    return NotFound(
        f"{path} is not there", code="no-such-file", tried=tried, on=str(path), next_step="check the path"
    )
