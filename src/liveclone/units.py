"""Sizes and durations as people write them, and back.

Inside the program a size is an `int` of bytes and a duration an `int` of nanoseconds (suffix `_ns`)
or a `float` of seconds (suffix `_s`); only this module knows "512M" and "21.4 ms".
"""

from __future__ import annotations

import re

from .errors import Refused

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
PAGE = 4096

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that `text` names ("512M", "2GiB", "1.5g", "4096"); factors are powers of 1024.

    Raises:
        Refused: the text is not a size, or it is not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text)
    size = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
    if not match or size <= 0 or size != int(size):
        raise Refused(
            f"{text!r} is not a size",
            code="bad-size",
            tried="reading a size",
            next_step="write it like 512M or 2G",
        )
    return int(size)


def render_size(size_bytes: int) -> str:
    """Return a short size for people: 512 MiB, 1.5 GiB."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} B"


def render_duration(seconds: float) -> str:
    """Return a short duration for people: 850 µs, 21.4 ms, 3.2 s, 4 min 10 s."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s"
