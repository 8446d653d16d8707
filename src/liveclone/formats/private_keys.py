"""What is secret in a file of private keys: the numbers, and the lines of base64 that hold them.

    -----BEGIN OPENSSH PRIVATE KEY-----        armour: the same in every file, and in every program that reads one
    b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAA...     the same in every key of this kind, then the public half
    9vK3x0bKp0v1sQ2lUo0eXkq0Yk2m...            the secret numbers, somewhere in the rest

To look for the whole file would find the first lines everywhere; to look for the public half is no proof either. So the
blob is taken apart: OpenSSH's format (PROTOCOL.key) by its fields, all others as DER (PKCS #1, #8, SEC 1), of which each
long integer and octet string counts but an RSA modulus. What cannot be taken apart counts whole.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_PUBLIC = re.compile(rb"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ (AAAA[A-Za-z0-9+/]{32,}=*)")
_MAGIC = b"openssh-key-v1\0"
_SHORTEST = 16  # of a number; shorter ones are exponents and versions
_SHORTEST_LINE = 16

# Of OpenSSH's private section: which of the fields behind the key's type are secret.
_SECRET_FIELDS = {
    b"ssh-ed25519": (1,),
    b"ssh-rsa": (2, 3, 4, 5),
    b"ecdsa-sha2-nistp256": (2,),
    b"ecdsa-sha2-nistp384": (2,),
    b"ecdsa-sha2-nistp521": (2,),
}
_SEED = 32  # of ed25519's field of 64 bytes; the rest is the public half

_INTEGER, _OCTETS = 0x02, 0x04

Range = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """One key of a file."""

    numbers: tuple[bytes, ...] = field(repr=False)
    lines: tuple[bytes, ...] = field(repr=False)  # those parts of its lines that hold a number's bits


def find_blocks(content: bytes) -> list[Block]:
    """Return the private keys in a file; none if there is no such thing in it."""
    found = []
    for match in _BLOCK.finditer(content):
        if b"PRIVATE" in match[1]:
            lines = [line.strip() for line in match[2].splitlines() if line.strip() and b":" not in line]
            try:
                blob = base64.b64decode(b"".join(lines), validate=True)
            except (ValueError, binascii.Error):
                continue
            ranges = list(_secret_ranges(blob)) or [(0, len(blob))]
            numbers = (blob[start:end].lstrip(b"\0") for start, end in ranges)
            found.append(Block(tuple(dict.fromkeys(numbers)), tuple(_cut_lines(lines, ranges))))
    return found


def find_public(content: bytes) -> list[bytes]:
    """Return the public SSH keys in a file (authorized_keys, *.pub), as they are in binary."""
    found = []
    for match in _PUBLIC.finditer(content):
        try:
            found.append(base64.b64decode(match[1], validate=True))
        except (ValueError, binascii.Error):
            continue
    return found


def _secret_ranges(blob: bytes) -> Iterator[Range]:
    try:
        yield from _openssh_ranges(blob) if blob.startswith(_MAGIC) else _der_ranges(blob, 0, len(blob))
    except (struct.error, IndexError):
        return


def _openssh_ranges(blob: bytes) -> list[Range]:
    fields, at = [], len(_MAGIC)
    for _ in range(3):  # cipher, key derivation, its options
        start, at = _field(blob, at)
        fields.append(blob[start:at])
    (keys,) = struct.unpack_from(">I", blob, at)
    _, at = _field(blob, at + 4)  # the public half
    start, end = _field(blob, at)
    if keys != 1 or fields[0] != b"none":
        return [(start, end)]
    at = start + 8  # two equal numbers, by which a wrong passphrase is noticed
    first, at = _field(blob, at)
    kind, secret = blob[first:at], []
    wanted = _SECRET_FIELDS.get(kind)
    if wanted is None:
        return [(at, end)]
    for index in range(max(wanted) + 1):
        first, at = _field(blob, at)
        if index in wanted:
            secret.append((first, first + _SEED if kind == b"ssh-ed25519" else at))
    return secret


def _field(blob: bytes, at: int) -> Range:
    """Return where a string lies whose length stands at `at`."""
    (length,) = struct.unpack_from(">I", blob, at)
    if at + 4 + length > len(blob):
        raise IndexError(length)
    return at + 4, at + 4 + length


def _der_ranges(blob: bytes, at: int, end: int) -> Iterator[Range]:
    """Yield where long integers and octet strings lie, the modulus of an RSA key aside (its first long integer)."""
    integers = 0
    while at < end:
        tag = blob[at]
        start, stop = _length(blob, at + 1)
        if tag & 0x20 or (tag == _OCTETS and blob[start] == 0x30):  # made of others
            yield from _der_ranges(blob, start, stop)
        elif tag == _OCTETS and blob[start] == _OCTETS and stop - start == blob[start + 1] + 2:
            yield start + 2, stop  # ed25519: a string in a string
        elif tag in (_INTEGER, _OCTETS) and stop - start >= _SHORTEST:
            integers += tag == _INTEGER
            if tag == _OCTETS or integers > 1:
                yield start, stop
        at = stop


def _length(blob: bytes, at: int) -> Range:
    first = blob[at]
    if first < 0x80:
        start, length = at + 1, first
    else:
        start = at + 1 + (first & 0x7F)
        length = int.from_bytes(blob[at + 1 : start], "big")
    if start + length > len(blob):
        raise IndexError(length)
    return start, start + length


def _cut_lines(lines: list[bytes], ranges: list[Range]) -> Iterator[bytes]:
    """Yield, of each line of base64, the part whose bits are all in one of the ranges."""
    at = 0
    for line in lines:
        for start, end in ranges:
            first, last = max(at, -(-start * 8 // 6)), min(at + len(line), end * 8 // 6)
            if last - first >= _SHORTEST_LINE:
                yield line[first - at : last - at]
        at += len(line)
