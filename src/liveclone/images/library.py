"""The images of this installation.

    images/
      NAME/              manifest.json  disk.qcow2  kernel  initrd        (an imported disk: manifest.json, disk.qcow2)
      .NAME.lock         held alone by whoever makes or removes NAME
      .NAME.XXXX/        half-made, or being removed; the next holder of the lock sweeps it

An image appears by one rename, whole, and never changes: machines and snapshots have its disk as their backing file.
So whoever removes or replaces one sees first that nobody uses it; the library does not know machines.
"""

from __future__ import annotations

import contextlib
import difflib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from .. import ids
from ..errors import Conflict, NotFound, StoreError
from ..host import command, files, locks
from ..model import base
from ..model.image import Image

MANIFEST = "manifest.json"
DISK, KERNEL, INITRD = "disk.qcow2", "kernel", "initrd"

# Whoever comes second waits for the whole build of the first: 40 s, or as long as a slow line takes.
_LOCK_DEADLINE_S = 2 * 3600.0


class ImageLibrary:
    """The folder of all images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def folder(self, name: str) -> Path:
        """Return where the image of this name is, or would be.

        Raises:
            Refused: nothing can have this name.
        """
        return self._folder / ids.check_name(name, "name of an image")

    def list(self) -> list[Image]:
        """Return all images, oldest first."""
        found = []
        for path in self._folder.glob(f"[!.]*/{MANIFEST}"):
            with contextlib.suppress(FileNotFoundError):  # removed while we were looking
                found.append(base.decode(path.read_bytes(), Image, str(path)))
        return sorted(found, key=lambda image: (image.created_at, image.name))

    def find(self, name: str) -> Image | None:
        """Return the image of this name, or None."""
        path = self.folder(name) / MANIFEST
        try:
            return base.decode(path.read_bytes(), Image, str(path))
        except FileNotFoundError:
            return None

    def load(self, name: str) -> Image:
        """Return the image of this name.

        Raises:
            NotFound: there is none; the message names those that are spelt alike. Corrupt: its manifest cannot be read.
        """
        image = self.find(name)
        if image is not None:
            return image
        names = sorted(path.parent.name for path in self._folder.glob(f"[!.]*/{MANIFEST}"))
        near = difflib.get_close_matches(name, names, 3)
        raise NotFound(
            f"there is no image {name}",
            code="no-such-image",
            tried="looking for an image",
            on=name,
            seen=f"images: {', '.join(names)}" if names else "no image yet",
            next_step=f"did you mean {' or '.join(near)}?" if near else "liveclone image build",
        )

    @contextlib.asynccontextmanager
    async def hold(self, name: str, what: str, deadline_s: float = _LOCK_DEADLINE_S) -> AsyncIterator[None]:
        """Be the only one who makes or removes the image of this name; removes what a dead one left half-made.

        Raises:
            Conflict: somebody else is at it for too long; the message says who.
        """
        lock = self.folder(name).with_name(f".{name}.lock")
        async with locks.hold_async(lock, what, deadline_s):
            for left in self._folder.glob(f".{name}.*/"):
                await _sweep(left)
            yield

    def new_folder(self, name: str) -> Path:
        """Make and return an empty folder for the parts of an image; the caller holds it, and then adds or removes it."""
        folder = self.folder(name).with_name(f".{name}.{secrets.token_hex(4)}")
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def add(self, image: Image, parts: Path, *, replace: bool = False) -> None:
        """Make the folder `parts` the image's own; the caller holds the name.

        Its disk, kernel and initrd are in `parts` under their names; the manifest is written here.

        Args:
            replace: an image of this name may go, which the caller knows to be unused.

        Raises:
            Conflict: the name is taken (code "image-exists"); `parts` is still there.
        """
        target = self.folder(image.name)
        old = target.with_name(f".{image.name}.{secrets.token_hex(4)}")
        if target.exists() and not replace:
            raise taken(image.name)
        files.write_atomic(parts / MANIFEST, base.encode(image), mode=0o644)
        try:
            parts.chmod(0o755)
            if target.exists():
                target.rename(old)
            parts.rename(target)
            files.sync_folder(self._folder)
        except OSError as error:
            raise files.explain(error, "adding an image", target) from error
        files.remove_tree(old)

    async def remove(self, name: str) -> None:
        """Remove an image that nothing uses, which the caller has seen to.

        Raises:
            NotFound: there is none.
        """
        self.load(name)
        async with self.hold(name, f"removing image {name}"):
            self.load(name)
            target = self.folder(name)
            # First out of sight, by one rename, so that a crash leaves no half of an image in the list.
            old = target.with_name(f".{name}.{secrets.token_hex(4)}")
            try:
                target.rename(old)
                files.sync_folder(self._folder)
            except OSError as error:
                raise files.explain(error, "removing an image", target) from error
            files.remove_tree(old)


async def _sweep(folder: Path) -> None:
    try:
        files.remove_tree(folder)
    except StoreError:
        # A build without root that was killed has left files of its user's subordinate ids.
        argv = ["unshare", "--map-root-user", "--map-auto", "--", "rm", "-rf", str(folder)]
        await command.run(argv, deadline_s=600.0, package="uidmap")


def taken(name: str) -> Conflict:
    """Return the error for a name that another image has."""
    return Conflict(
        f"there is another image {name}",
        code="image-exists",
        tried="making an image",
        on=name,
        seen="it was made from another recipe",
        next_step=f"use another name, or: liveclone image remove {name}",
    )
