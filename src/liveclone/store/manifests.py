"""The text of a manifest: JSON whose first line is the checksum of all the others.

    {
      "checksum": "<blake3 of the text without this line, in hex>",
      "id": ...

The parts of a snapshot are known by their digests, which are in its manifest; nothing but this knows the manifest itself. A
byte that flips in it may turn a size, a kernel's option or a layer's id into another one that is as good to read.
"""

from __future__ import annotations

import re
from typing import TypeVar

import blake3

from ..errors import Corrupt
from ..model import base

T = TypeVar("T")

_HEAD = b"{\n"
_LINE = re.compile(rb'\{\n  "checksum": "([0-9a-f]{64})",\n')


def render(value: object) -> bytes:
    """Return the text of a manifest."""
    text = base.encode(value)
    return _HEAD + f'  "checksum": "{blake3.blake3(text).hexdigest()}",\n'.encode() + text.removeprefix(_HEAD)


def parse(data: bytes, kind: type[T], on: str) -> T:
    """Return the value of a manifest.

    Raises:
        Corrupt: it is not as it was written, or not of this kind (code "bad-manifest"). `on` names the file.
    """
    line = _LINE.match(data)
    text = _HEAD + data[line.end() :] if line else b""
    if line is None or blake3.blake3(text).hexdigest().encode() != line[1]:
        raise Corrupt(
            f"{on} is damaged: it is not as it was written",
            code="bad-manifest",
            tried="reading a manifest",
            on=on,
            seen="its checksum does not fit" if line else "it does not begin with its checksum",
            source_state="not touched",
            next_step="restore the file from a copy, or remove the object it belongs to",
        )
    return base.decode(text, kind, on)
