"""Which layers a fake machine's disk has, read from the headers that the engine wrote; and how a base is made."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from ...errors import HypervisorError
from ...formats import qcow2
from .disk import Disk, Layer

MAGIC = b"liveclone fake disk\n"


def read_chain(path: Path) -> list[Layer]:
    """Return the layers from `path` down to the base.

    Raises:
        HypervisorError: one of them is missing.
    """
    chain: list[Layer] = []
    following: Path | None = path
    while following is not None:
        try:
            layer, following = _read_layer(following)
        except OSError as error:
            raise HypervisorError(
                f"a disk layer cannot be read: {error.strerror}",
                code="no-disk",
                tried="opening the disk",
                on=str(following),
                seen=str(error),
            ) from error
        chain.append(layer)
    return chain


def read_chain_on(path: Path, below: Path) -> list[Layer]:
    """Return the layers from the empty one at `path` down, which must stand on `below`.

    Raises:
        HypervisorError: it is missing, or stands on something else.
    """
    chain = read_chain(path)
    if len(chain) < 2 or not Path(chain[1][0]).samefile(below):
        raise HypervisorError(
            f"{path} does not stand on {below}", code="wrong-layer", tried="adding a disk layer", on=str(path)
        )
    return chain


def write_base(path: Path, files: dict[str, str]) -> None:
    """Make the disk of an image whose guest has these files ("/etc/hostname"). An empty file is an image, too."""
    lines = [
        json.dumps({"file": name, "mode": 0o644, "data": base64.b64encode(text.encode()).decode()})
        for name, text in files.items()
    ]
    path.write_bytes(MAGIC + "".join(line + "\n" for line in lines).encode())


def flatten(path: Path, target: Path) -> None:
    """Write all lines of a chain into one layer on nothing: the header of a qcow2 without a backing file, then a base."""
    with path.open("rb") as file:
        size_bytes = qcow2.parse_header(file.read(qcow2.HEADER_BYTES)).size_bytes
    lines = (json.dumps(line).encode() + b"\n" for line in Disk(read_chain(path)).lines())
    target.write_bytes(_render_alone(size_bytes) + MAGIC + b"".join(lines))


def _render_alone(size_bytes: int) -> bytes:
    overlay = qcow2.render_overlay("nothing", "qcow2", size_bytes)
    return overlay[:8] + bytes(12) + overlay[20:]  # offset and length of the backing file's name


def _read_layer(path: Path) -> tuple[Layer, Path | None]:
    with path.open("rb") as file:
        head = file.read(qcow2.HEADER_BYTES)
    if head.startswith(MAGIC):
        return (str(path), len(MAGIC)), None
    header = qcow2.parse_header(head) if head.startswith(qcow2.MAGIC) else None
    if header is not None and not header.backing:
        begin = len(_render_alone(header.size_bytes))
        with path.open("rb") as file:
            file.seek(begin)
            if file.read(len(MAGIC)) == MAGIC:
                return (str(path), begin + len(MAGIC)), None
    if header is None or not header.backing:
        return (str(path), -1), None  # somebody's disk: nothing of ours is on it
    empty = qcow2.render_overlay(
        header.backing, header.backing_format, header.size_bytes, header.cluster_bits
    )
    return (str(path), len(empty)), path.parent / header.backing
