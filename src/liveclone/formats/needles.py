"""Secrets as they lie about in memories and on disks: which bytes to look for, so that a copy, or half of one, is found.

    secret ── pieces ── forms
              PIECE     raw | hex, HEX | base64 in three alignments, its URL alphabet too | UTF-16 | reversed

A copy is often not whole: a page ends in it, an encoder breaks the line in it. So a secret is looked for in pieces of 16
bytes. One end of a copy that is cut in two still holds a whole piece, if the secret has 32 bytes or more. What base64
makes of a piece depends on how many bytes stand before it: one needle for each of the three alignments, without the
characters at either end that hold bits of others. Key numbers are kept reversed, too (OpenSSL, on little-endian machines).

A secret shorter than 8 bytes would be found by chance, and one that repeats itself everywhere: neither is looked for.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import Refused
from . import private_keys

SHORTEST = 8
PIECE = 16
_CHUNK = 32  # of ordinary text, where 16 bytes may well stand in other files, too
_MOST_CHUNKS = 1024  # of one file; of a longer one, as many as that, spread over all of it
_FEWEST_VALUES = 4  # different bytes in a secret

# What looks like a token among the words of a file: long, of letters and digits.
_WORD = re.compile(rb"[A-Za-z0-9+/=_.~-]{16,}")


class Kind(enum.Enum):
    """What a secret is, which decides the forms that it may take."""

    VALUE = "value"  # random bytes or a token
    NUMBER = "number"  # of a key: kept reversed too
    LINE = "line"  # part of a line of base64, as it stands in a file
    TEXT = "text"  # ordinary text, or anything: in longer pieces


@dataclass(frozen=True)
class Secret:
    """Bytes to look for. `name` says where they come from and may be shown; the value never is."""

    name: str
    value: bytes = field(repr=False)
    kind: Kind = Kind.VALUE

    @property
    def is_searched(self) -> bool:
        """Whether it can be told from chance."""
        return len(self.value) >= SHORTEST and len(set(self.value)) >= _FEWEST_VALUES


@dataclass(frozen=True)
class Needle:
    """One piece of a secret in one form."""

    name: str
    form: str
    data: bytes = field(repr=False)


def secrets_in(name: str, content: bytes, *, words: bool = True) -> list[Secret]:
    """Return what is secret in a file that is a secret: key numbers, tokens, and all the rest of it in pieces.

    Args:
        words: take tokens for secrets of their own; not in a history, where they are mostly names of files.
    """
    blocks = private_keys.find_blocks(content)
    found = []
    for block in blocks:
        found += [Secret(name, number, Kind.NUMBER) for number in block.numbers]
        found += [Secret(name, line, Kind.LINE) for line in block.lines]
    for blob in private_keys.find_public(content):
        found.append(Secret(name, blob[-_CHUNK:]))  # it begins as all of its kind do
    if found:
        return found
    if words:
        found += [Secret(name, word, Kind.VALUE) for word in _WORD.findall(content) if _is_token(word)]
    return [*found, Secret(name, content.strip(), Kind.TEXT)]


def render_needles(secret: Secret) -> Iterator[Needle]:
    """Yield all pieces of a secret in all forms; none for one that is not searched."""
    if not secret.is_searched:
        return
    for piece in dict.fromkeys(_pieces(secret)):
        if len(set(piece)) < _FEWEST_VALUES:
            continue
        for form, data in _forms(piece, secret.kind):
            yield Needle(secret.name, form, data)


def parse_list(text: str, on: str) -> list[Secret]:
    """Return the secrets of a list, one a line: as it is, or as `hex:...` or `base64:...`.

    Raises:
        Refused: a line has no meaning, or there is none; it is named by its number.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        kind, colon, rest = line.partition(":")
        try:
            if colon and kind == "hex":
                value = bytes.fromhex(rest)
            elif colon and kind == "base64":
                value = base64.b64decode(rest, validate=True)
            else:
                value = line.encode("utf-8", "surrogateescape")
        except (ValueError, binascii.Error) as error:
            raise _refuse(f"line {number} of {on} is not {kind}", on, str(error)) from error
        found.append(Secret(f"line {number}", value))
    if not found:
        raise _refuse(f"there is nothing in {on} to look for", on, "no lines")
    return found


def _pieces(secret: Secret) -> Iterator[bytes]:
    value = secret.value
    size = _CHUNK if secret.kind is Kind.TEXT else PIECE
    if secret.kind is Kind.LINE or len(value) < 2 * size:
        yield value
        return
    starts = range(0, len(value) - size + 1, size)
    if len(starts) > _MOST_CHUNKS:
        starts = starts[:: -(-len(starts) // _MOST_CHUNKS)]
    for start in starts:
        yield value[start : start + size]
    yield value[-size:]


def _forms(piece: bytes, kind: Kind) -> Iterator[tuple[str, bytes]]:
    yield "raw", piece
    if piece.isascii():
        yield "utf-16", piece.decode().encode("utf-16-le")
    if kind is Kind.LINE:
        return
    yield "hex", piece.hex().encode()
    yield "HEX", piece.hex().upper().encode()
    for before in range(3):
        plain = _base64(piece, before)
        yield "base64", plain
        url = plain.translate(bytes.maketrans(b"+/", b"-_"))
        if url != plain:
            yield "base64url", url
    if kind is Kind.NUMBER:
        yield "reversed", piece[::-1]


def _base64(piece: bytes, before: int) -> bytes:
    """Return the characters that hold bits of `piece` alone, if `before` other bytes stand in front of it (modulo 3)."""
    text = base64.b64encode(bytes(before) + piece)
    return text[-(-before * 8 // 6) : (before + len(piece)) * 8 // 6]


def _is_token(word: bytes) -> bool:
    has_digit = any(48 <= value <= 57 for value in word)
    return has_digit and any(value > 64 for value in word) and len(set(word)) >= PIECE // 2


def _refuse(message: str, on: str, seen: str) -> Refused:
    return Refused(
        message,
        code="bad-needles",
        tried="reading what to look for",
        on=on,
        seen=seen,
        next_step="one secret a line, as it is or as hex:... or base64:...",
    )
