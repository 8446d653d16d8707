"""What a search of a snapshot for secrets found: where, and of which, never the secret itself."""

from __future__ import annotations

import datetime

from .base import Value


class Hit(Value, frozen=True, kw_only=True):
    """A secret, or a piece of it, that lies in a part of a snapshot."""

    secret: str  # its name: the file that it was taken from, or the line of the list
    part: str  # "memory", "device state", "disk", or the name of a layer's file
    offset: int  # of the first place
    form: str  # "raw", "base64", ...
    places: int = 1  # in how many of this part it lies in this form


class Scrub(Value, frozen=True, kw_only=True):
    """`found` is empty if nothing of `secrets` secrets was found in any part."""

    at: datetime.datetime
    secrets: int
    found: tuple[Hit, ...] = ()
    not_searched: tuple[
        str, ...
    ] = ()  # names of secrets that are too short, or too regular, to be told from chance
    searched_bytes: dict[str, int] = {}  # of each part, without holes
    took_ms: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.found
