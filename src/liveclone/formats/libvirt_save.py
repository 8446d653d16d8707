"""The header of a libvirt save image: read, and written again around another domain XML.

    0       magic        "LibvirtQemudSave", or "LibvirtQemudPart" as long as libvirt is still writing
    16      version      2 in libvirt 0.8 to 11; the byte order of these words is that of the host that wrote them
    20      data_len     room for XML, cookie and padding; libvirt leaves 64 KiB to spare
    24      was_running  whether a restored domain runs at once
    28      format       how the stream is stored, see `SaveFormat`
    32      cookie       where the cookie begins, counted from the XML's first byte; 0 without
    36      14 words     zero
    92      XML NUL [cookie NUL] zeros
    92 + data_len        QEMU's migration stream

A clone is made of a save image by giving it another name, disks and so on in the XML and leaving the stream as it is. In a
sparse image the stream tells where in the *file* its pages are, so there the header must keep its length. What the XML
says is not looked at here. Source: libvirt, src/qemu/qemu_saveimage.[ch], and images that libvirt 11.3 wrote.

NOT HANDLED: version 1 (before 2010). Tripwire: `Corrupt` naming the version; words that should be zero and are not.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from ..errors import Corrupt, Refused
from ..units import KIB, MIB

MAGIC = b"LibvirtQemudSave"
PARTIAL = b"LibvirtQemudPart"
VERSION = 2
FIXED_BYTES = 92

_WORDS = struct.Struct("<5I14I"), struct.Struct(">5I14I")
_SPARE = 64 * KIB  # as libvirt: so that `virsh save-image-edit` can lengthen the XML
_MAX_DATA = 16 * MIB  # a domain XML has a few KiB; libvirt's own limit for one sent to it is 4 MiB


class SaveFormat(enum.IntEnum):
    """How the stream after the header is stored; the numbers are libvirt's."""

    RAW = 0
    GZIP = 1
    BZIP2 = 2
    XZ = 3
    LZOP = 4
    ZSTD = 5
    SPARSE = 6  # mapped-ram, libvirt 11.2 and later

    @property
    def is_compressed(self) -> bool:
        """The stream must go through `compression` first."""
        return self not in (SaveFormat.RAW, SaveFormat.SPARSE)

    @property
    def needs_header_length(self) -> bool:
        """The stream holds offsets into the file, so nothing in front of it may grow or shrink."""
        return self is SaveFormat.SPARSE


@dataclass(frozen=True)
class SaveHeader:
    """What a save image says of itself. Change it with `dataclasses.replace`.

    `cookie` is libvirt's own (processor model, capabilities), empty where there is none; `data_bytes` the room for both
    texts; `big_endian` the byte order of the host that wrote it.
    """

    xml: str
    cookie: str = ""
    running: bool = True
    format: SaveFormat = SaveFormat.RAW
    data_bytes: int = 0
    big_endian: bool = False

    @property
    def stream_offset(self) -> int:
        """Where the migration stream begins in the file."""
        return FIXED_BYTES + self.data_bytes


def measure_header(data: bytes) -> int:
    """Return how many bytes `parse_header` needs, told by the first FIXED_BYTES of an image.

    Raises:
        Corrupt: as `parse_header`; so that nobody makes room for a length that cannot be.
    """
    return FIXED_BYTES + _parse_words(data)[0][1]


def parse_header(data: bytes) -> SaveHeader:
    """Return what the first `measure_header` bytes of an image say; more do no harm.

    Raises:
        Corrupt: not a save image (code "not-save-image"), one that was never finished ("incomplete"), of an unknown
            version or format ("unknown-version", "unknown-format"), or damaged ("bad-save-image").
    """
    words, big_endian = _parse_words(data)
    _, size, running, kind, cookie_at = words
    if len(data) < FIXED_BYTES + size:
        raise _bad(len(data), f"the header ends here, and should have {FIXED_BYTES + size} bytes")
    body = data[FIXED_BYTES : FIXED_BYTES + size]
    xml_end = cookie_at or size
    return SaveHeader(
        xml=_read_text(body[:xml_end], FIXED_BYTES, "XML", padded=not cookie_at),
        cookie=_read_text(body[xml_end:], FIXED_BYTES + xml_end, "cookie", padded=True) if cookie_at else "",
        running=bool(running),
        format=SaveFormat(kind),
        data_bytes=size,
        big_endian=big_endian,
    )


def render_header(header: SaveHeader) -> bytes:
    """Return the bytes that go in front of the stream; of a parsed header the very same bytes.

    The texts get the room that `data_bytes` says. Where they need more it grows, with 64 KiB to spare: the stream then
    begins later than `header.stream_offset`, at the length of what is returned.

    Raises:
        Refused: the texts do not fit and the room must not grow ("no-room"), or are no texts for it ("bad-text").
    """
    xml = _encode(header.xml, "XML")
    cookie = _encode(header.cookie, "cookie") if header.cookie else b""
    need, room = len(xml) + len(cookie), header.data_bytes
    if need > room:
        if header.format.needs_header_length and room:
            raise _refuse(
                "no-room", f"XML and cookie need {need} bytes, and a sparse save image has room for {room}"
            )
        room = need + _SPARE
    if room > _MAX_DATA:
        raise _refuse("no-room", f"XML and cookie need {need} bytes of at most {_MAX_DATA}")
    words = (VERSION, room, int(header.running), header.format, len(xml) if cookie else 0)
    fixed = MAGIC + _WORDS[header.big_endian].pack(*words, *[0] * 14)
    return fixed + (xml + cookie).ljust(room, b"\0")


def _parse_words(data: bytes) -> tuple[tuple[int, int, int, int, int], bool]:
    """Return version, data_len, was_running, format and cookie offset, each within its limits, and the byte order."""
    magic = data[: len(MAGIC)]
    if magic == PARTIAL:
        raise _bad(0, "libvirt did not finish writing it", "incomplete")
    if magic != MAGIC:
        raise _bad(0, f"it begins with {magic!r}", "not-save-image")
    if len(data) < FIXED_BYTES:
        raise _bad(len(data), f"the header ends here, and should have at least {FIXED_BYTES} bytes")
    for big_endian in (False, True):
        words = _WORDS[big_endian].unpack_from(data, len(MAGIC))
        if words[0] == VERSION:
            break
    else:
        shown = int.from_bytes(data[16:20], "little")
        raise _bad(16, f"version {shown}, where only {VERSION} is known", "unknown-version")
    version, size, running, kind, cookie_at = words[:5]
    if not 1 < size <= _MAX_DATA:
        raise _bad(20, f"XML and cookie of {size} bytes, where at most {_MAX_DATA} can be")
    if running > 1:
        raise _bad(24, f"was_running is {running}")
    if kind not in SaveFormat.__members__.values():
        raise _bad(28, f"format {kind}", "unknown-format")
    if cookie_at >= size:
        raise _bad(32, f"a cookie at {cookie_at} of {size} bytes")
    if any(words[5:]):
        raise _bad(36, "words that should be zero are not")
    return (version, size, running, kind, cookie_at), big_endian


def _read_text(field: bytes, offset: int, what: str, *, padded: bool) -> str:
    end = field.find(b"\0")
    if end < 1:
        raise _bad(offset, f"the {what} is empty" if end == 0 else f"the {what} does not end")
    if field.count(b"\0", end) != len(field) - end or (not padded and end != len(field) - 1):
        raise _bad(offset + end, f"something follows the end of the {what}")
    try:
        return field[:end].decode()
    except UnicodeDecodeError as error:
        raise _bad(offset + error.start, f"the {what} is not UTF-8") from error


def _encode(text: str, what: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise _refuse("bad-text", f"the {what} cannot be written as UTF-8: {error.reason}") from error
    if not data or b"\0" in data:
        raise _refuse("bad-text", f"the {what} is empty, or has a NUL in it")
    return data + b"\0"


def _refuse(code: str, seen: str) -> Refused:
    return Refused(
        f"the save image's header cannot be written: {seen}",
        code=code,
        tried="writing a save image's header",
        seen=seen,
        next_step="take descriptions and metadata that are not needed out of the domain XML",
    )


def _bad(offset: int, seen: str, code: str = "bad-save-image") -> Corrupt:
    return Corrupt(
        f"the save image cannot be read at offset {offset}: {seen}",
        code=code,
        tried="reading a libvirt save image",
        on=f"offset {offset}",
        seen=seen,
        next_step="virsh save-image-dumpxml FILE",
    )
