"""Names that users give and identifiers that we make.

A name is also a folder's name, a guest's host name and a command's argument, so it follows the
strictest of the three (RFC 1123 label). An identifier is twelve random hexadecimal digits: never
given twice, never needs escaping, and can be shortened by the user to any unique prefix.
"""

from __future__ import annotations

import re
import secrets

from .errors import Refused

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ID = re.compile(r"[0-9a-f]{12}")
_HOSTNAME_LONGEST = 64  # sethostname(2), on Linux


def new_id() -> str:
    """Return a fresh identifier, 48 random bits as 12 hexadecimal digits."""
    return secrets.token_hex(6)


def is_id(text: str) -> bool:
    """Tell whether `text` has the form of an identifier of ours."""
    return _ID.fullmatch(text) is not None


def check_name(text: str, what: str = "name") -> str:
    """Return `text` if it may name a machine, a snapshot or an image.

    Raises:
        Refused: it is empty, longer than 63 characters, or holds anything but a-z, 0-9 and inner dashes.
    """
    if _NAME.fullmatch(text):
        return text
    shown = text if len(text) <= 40 else text[:37] + "..."
    raise Refused(
        f"{shown!r} cannot be a {what}",
        code="bad-name",
        tried=f"reading a {what}",
        seen=f"{len(text)} characters",
        next_step="use 1 to 63 of a-z, 0-9 and dashes, beginning and ending with a letter or digit",
    )


def check_hostname(text: str) -> str:
    """Return `text` if it may be a guest's host name: labels as names have them, joined by dots, 64 characters at most.

    Raises:
        Refused: it may not.
    """
    if len(text) <= _HOSTNAME_LONGEST and all(_NAME.fullmatch(label) for label in text.lower().split(".")):
        return text
    shown = text if len(text) <= 40 else text[:37] + "..."
    raise Refused(
        f"{shown!r} cannot be a host name",
        code="bad-name",
        tried="reading a host name",
        seen=f"{len(text)} characters",
        next_step="use letters, digits and dashes, joined by dots, 64 characters at most",
    )
