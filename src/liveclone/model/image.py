"""A guest image: what a machine boots from cold."""

from __future__ import annotations

import datetime

from .base import Value
from .machine import Boot


class Image(Value, frozen=True, kw_only=True):
    """The manifest of an image, `images/NAME/manifest.json`; paths in `boot` and `disk` are absolute."""

    name: str
    created_at: datetime.datetime
    disk: str
    disk_bytes: int  # virtual size
    boot: Boot
    suite: str = ""  # "trixie"; empty for imported disks
    packages: tuple[str, ...] = ()
    has_agent: bool = False
    recipe: str = ""  # digest of everything the image was made from: the cache's key
    took_s: float = 0.0
