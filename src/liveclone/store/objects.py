"""A folder of objects, each a folder with a manifest: what machines and snapshots have in common.

    FOLDER/ID/manifest.json      written whole or not at all; an object without one is half-made and not listed

One that is damaged stops every command but its own removal by id: what it owns is not known, so nothing may be swept away.

Objects are asked for by name, by id, or by the beginning of an id. Names are unique within a collection.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ..errors import Conflict, Corrupt, NotFound
from ..host import files, locks
from ..ids import check_name, is_id
from . import manifests
from .layout import MANIFEST


class Named(Protocol):
    """Anything with an id and a name."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)  # Machine or Snapshot

LOCK_DEADLINE_S = 30.0


class Objects(Generic[T]):
    """One collection.

    Args:
        folder: where the objects' folders are.
        kind: the manifest's type.
        noun: for messages ("machine").
        lock: the collection's lock file.
    """

    def __init__(self, folder: Path, kind: type[T], noun: str, lock: Path) -> None:
        self.noun = noun
        self._folder = folder
        self._kind = kind
        self._lock = lock

    def folder(self, object_id: str) -> Path:
        return self._folder / object_id

    def list(self) -> list[T]:
        """Return all objects, oldest first (their manifests' creation time).

        Raises:
            Corrupt: a manifest cannot be read.
        """
        found = []
        for path in self._folder.glob(f"*/{MANIFEST}"):
            try:
                found.append(self._read(path))
            except FileNotFoundError:
                continue  # removed while we were looking
        return sorted(found, key=lambda value: getattr(value, "created_at", value.id))

    def load(self, object_id: str) -> T:
        """Return the object with exactly this id.

        Raises:
            NotFound: there is none. Corrupt: its manifest cannot be read.
        """
        path = self.folder(object_id) / MANIFEST
        try:
            return self._read(path)
        except FileNotFoundError as error:
            raise self._missing(object_id, []) from error

    def find(self, text: str) -> T:
        """Return the object that `text` names: its name, its id, or a prefix of its id that fits no other.

        Raises:
            NotFound: none; names that look similar are proposed.
            Conflict: a prefix that fits several (code "ambiguous").
            Corrupt: a manifest cannot be read; of several the one with this id is named.
        """
        if is_id(text) and (self.folder(text) / MANIFEST).exists():
            self.load(text)
        objects = self.list()
        for exact in (
            [o for o in objects if o.name == text],
            [o for o in objects if o.id == text],
            [o for o in objects if len(text) >= 3 and o.id.startswith(text)],
        ):
            if len(exact) == 1:
                return exact[0]
            if exact:
                raise Conflict(
                    f"{text!r} fits {len(exact)} {self.noun}s",
                    code="ambiguous",
                    tried=f"finding a {self.noun}",
                    on=text,
                    seen=", ".join(f"{o.name} ({o.id})" for o in exact),
                    next_step="give more of the id, or the name",
                )
        raise self._missing(text, [o.name for o in objects])

    def create(self, value: T) -> Path:
        """Claim the object's name and write its manifest; return its folder.

        Raises:
            Refused: not a name. Conflict: the name is taken (code "name-taken"). Nothing was made.
        """
        check_name(value.name, f"{self.noun} name")
        with locks.hold(self._lock, f"naming {value.name}", LOCK_DEADLINE_S):
            for other in self.list():
                if other.name == value.name:
                    raise Conflict(
                        f"there is a {self.noun} named {value.name} already",
                        code="name-taken",
                        tried=f"making a {self.noun}",
                        on=value.name,
                        seen=f"id {other.id}",
                        next_step="choose another name, or remove that one",
                    )
            folder = self.folder(value.id)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.save(value, durable=False)
        return folder

    def save(self, value: T, *, durable: bool = True) -> None:
        """Write the manifest whole: the old or the new survives a crash, never half.

        Without `durable` it may be the old one after a crash of the host (not of a process).
        """
        files.write_atomic(self.folder(value.id) / MANIFEST, manifests.render(value), durable=durable)

    def remove(self, object_id: str) -> None:
        """Remove the object's folder, its manifest first, so that no half-removed object is ever listed."""
        folder = self.folder(object_id)
        (folder / MANIFEST).unlink(missing_ok=True)
        files.remove_tree(folder)

    def _read(self, path: Path) -> T:
        try:
            return manifests.parse(path.read_bytes(), self._kind, str(path))
        except Corrupt as error:
            error.next_step = f"{_REMOVING[self.noun]} {path.parent.name}, or restore the file from a copy"
            raise

    def _missing(self, text: str, names: Sequence[str]) -> NotFound:
        near = difflib.get_close_matches(text, names, 3)
        shown = text if len(text) <= 40 else text[:37] + "..."
        return NotFound(
            f"there is no {self.noun} {shown!r}",
            code=f"no-{self.noun}",
            tried=f"finding a {self.noun}",
            on=shown,
            seen=f"{len(names)} others" if names else "",
            next_step=f"did you mean {' or '.join(near)}?" if near else f"liveclone {_LISTING[self.noun]}",
        )


_LISTING = {"machine": "list", "snapshot": "snapshot list"}
_REMOVING = {"machine": "liveclone remove --force", "snapshot": "liveclone snapshot remove"}
