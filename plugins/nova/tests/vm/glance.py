"""Glance as Nova's driver knows it: images that get an id, data once, and a digest of it; kept in files."""

from __future__ import annotations

import copy
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nova import exception


class Images:
    """Takes the place of nova.image.glance.API. `images` may be looked at, and data is in `folder`/ID."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.images: dict[str, dict[str, Any]] = {}

    def add(self, path: Path, **image: Any) -> str:
        """Make an image of a file; return its id."""
        with path.open("rb") as file:
            return str(
                self.create(None, {"name": path.name, "container_format": "bare", **image}, file)["id"]
            )

    def create(self, context: Any, image: dict[str, Any], data: BinaryIO | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "status": "queued",
            "size": None,
            "properties": {},
            "min_disk": 0,
        }
        self.images[found["id"]] = {**found, "min_ram": 0, **copy.deepcopy(image)}
        self._upload(found["id"], data)
        return self.get(context, found["id"])

    def get(
        self, context: Any, image_id: str, include_locations: bool = False, show_deleted: bool = True
    ) -> dict[str, Any]:
        if image_id not in self.images:
            raise exception.ImageNotFound(image_id=image_id)
        return copy.deepcopy(self.images[image_id])

    def get_all(self, context: Any, filters: dict[str, str]) -> list[dict[str, Any]]:
        hidden = filters["os_hidden"] == "true"
        return [
            copy.deepcopy(image)
            for image in self.images.values()
            if image.get("os_hidden", False) == hidden
            and image["properties"].get("image_type") == filters["image_type"]
        ]

    def update(
        self,
        context: Any,
        image_id: str,
        image: dict[str, Any],
        data: BinaryIO | None = None,
        purge_props: bool = False,
    ) -> dict[str, Any]:
        assert not purge_props
        found, image = self.images[image_id], copy.deepcopy(image)
        assert all(isinstance(value, str) for value in image.get("properties", {}).values())
        found["properties"] |= image.pop("properties", {})
        found |= {key: value for key, value in image.items() if key != "status"}
        self._upload(image_id, data)
        return self.get(context, image_id)

    def delete(self, context: Any, image_id: str) -> None:
        self.get(context, image_id)
        del self.images[image_id]
        (self.folder / image_id).unlink(missing_ok=True)

    def download(
        self,
        context: Any,
        image_id: str,
        data: Any = None,
        dest_path: str | None = None,
        trusted_certs: Any = None,
    ) -> Iterator[bytes] | None:
        self.get(context, image_id)
        pieces = self._read(image_id)
        if dest_path is None:
            return pieces
        with open(dest_path, "wb") as file:
            file.writelines(pieces)
        return None

    def _read(self, image_id: str) -> Iterator[bytes]:
        with (self.folder / image_id).open("rb") as file:
            while data := file.read(65536):
                yield data

    def _upload(self, image_id: str, data: BinaryIO | None) -> None:
        if data is None:
            return
        image, digest = self.images[image_id], hashlib.sha512()
        assert image["status"] == "queued", "an image gets its data once"
        with (self.folder / image_id).open("wb") as file:
            while piece := data.read(1 << 20):
                digest.update(piece)
                file.write(piece)
            size = file.tell()
        image |= {
            "status": "active",
            "size": size,
            "os_hash_algo": "sha512",
            "os_hash_value": digest.hexdigest(),
        }
