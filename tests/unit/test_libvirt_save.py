"""The save image's header: round trips, images of libvirt 11.3, and what must be refused before room is made for it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from liveclone.errors import Corrupt, Refused, Unsupported
from liveclone.formats import compression, libvirt_save
from liveclone.formats.libvirt_save import FIXED_BYTES, SaveFormat, SaveHeader
from liveclone.units import KIB, MIB

XML = "<domain type='qemu'>\n  <name>köln</name>\n</domain>\n"
COOKIE = "<cookie>\n</cookie>\n"


def plain(**changes: object) -> bytes:
    return libvirt_save.render_header(replace(SaveHeader(XML, COOKIE), **changes))  # type: ignore[arg-type]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)
headers = st.builds(
    SaveHeader,
    xml=texts,
    cookie=st.one_of(st.just(""), texts),
    running=st.booleans(),
    format=st.sampled_from(SaveFormat),
    data_bytes=st.just(0),
    big_endian=st.booleans(),
)


@given(header=headers, tail=st.binary(max_size=20))
def test_what_is_written_is_read(header: SaveHeader, tail: bytes) -> None:
    data = libvirt_save.render_header(header)
    assert libvirt_save.measure_header(data[:FIXED_BYTES]) == len(data)
    read = libvirt_save.parse_header(data + tail)
    assert read == replace(header, data_bytes=len(data) - FIXED_BYTES)
    assert read.stream_offset == len(data)
    assert libvirt_save.render_header(read) == data


def test_the_bytes_are_libvirts() -> None:
    """Written by hand from the structure in qemu_saveimage.h."""
    body = b"<a/>\0<b/>\0" + bytes(6)
    data = b"LibvirtQemudSave" + struct.pack("<5I", 2, 16, 1, 5, 5) + bytes(56) + body
    assert libvirt_save.parse_header(data) == SaveHeader("<a/>", "<b/>", True, SaveFormat.ZSTD, 16)
    without = b"LibvirtQemudSave" + struct.pack(">5I", 2, 16, 0, 0, 0) + bytes(56) + b"<a/>".ljust(16, b"\0")
    assert libvirt_save.parse_header(without) == SaveHeader(
        "<a/>", "", False, SaveFormat.RAW, 16, big_endian=True
    )


def test_a_longer_xml_takes_the_spare_room_first() -> None:
    header = libvirt_save.parse_header(plain())
    longer = replace(header, xml=XML + "x" * 60 * KIB)
    assert len(libvirt_save.render_header(longer)) == header.stream_offset
    grown = libvirt_save.render_header(replace(header, xml=XML + "x" * 70 * KIB))
    assert len(grown) > header.stream_offset + 65 * KIB, "and there is room to spare again"
    assert libvirt_save.parse_header(grown).cookie == COOKIE


def test_in_a_sparse_image_the_header_keeps_its_length() -> None:
    header = libvirt_save.parse_header(plain(format=SaveFormat.SPARSE))
    assert len(libvirt_save.render_header(replace(header, xml="<other/>"))) == header.stream_offset
    with pytest.raises(Refused) as caught:
        libvirt_save.render_header(replace(header, xml="x" * 70 * KIB))
    assert caught.value.code == "no-room"


@pytest.mark.parametrize(("xml", "cookie"), [("", ""), ("a\0b", ""), ("a", "b\0"), ("\udcff", "")])
def test_a_text_that_cannot_be_written_is_refused(xml: str, cookie: str) -> None:
    with pytest.raises(Refused) as caught:
        libvirt_save.render_header(SaveHeader(xml, cookie))
    assert caught.value.code == "bad-text"


def test_more_than_can_be_is_not_written() -> None:
    with pytest.raises(Refused):
        libvirt_save.render_header(SaveHeader("x" * 17 * MIB))


WORD = struct.Struct("<I").pack


@pytest.mark.parametrize(
    ("at", "new", "code", "offset"),
    [
        (0, b"LibvirtQemudPart", "incomplete", 0),
        (0, b"QEVM", "not-save-image", 0),
        (16, WORD(3), "unknown-version", 16),
        (16, WORD(1), "unknown-version", 16),
        (20, WORD(0), "bad-save-image", 20),
        (20, WORD(1), "bad-save-image", 20),
        (20, WORD(0xFFFFFFFF), "bad-save-image", 20),
        (20, WORD(16 * MIB + 1), "bad-save-image", 20),
        (24, WORD(2), "bad-save-image", 24),
        (28, WORD(7), "unknown-format", 28),
        (32, WORD(0x7FFFFFFF), "bad-save-image", 32),
        (32, WORD(5), "bad-save-image", 92),
        (88, b"\1", "bad-save-image", 36),
        (92, b"\0", "bad-save-image", 92),
        (100, b"\0", "bad-save-image", 100),
        (100, b"\xff", "bad-save-image", 100),
        (30000, b"x", "bad-save-image", 92 + len(XML.encode()) + 1 + len(COOKIE)),
    ],
)
def test_damage_is_named_with_its_offset(at: int, new: bytes, code: str, offset: int) -> None:
    data = bytearray(plain())
    data[at : at + len(new)] = new
    with pytest.raises(Corrupt) as caught:
        libvirt_save.parse_header(bytes(data))
    assert (caught.value.code, caught.value.on) == (code, f"offset {offset}")


def test_a_hostile_length_is_refused_before_room_is_made() -> None:
    data = bytearray(plain()[:FIXED_BYTES])
    data[20:24] = b"\xff\xff\xff\x7f"
    with pytest.raises(Corrupt):
        libvirt_save.measure_header(bytes(data))


@given(cut=st.integers(0, 10**6))
def test_cut_off_anywhere(cut: int) -> None:
    data = plain()
    with pytest.raises(Corrupt):
        libvirt_save.parse_header(data[: cut % len(data)])


@given(header=headers, bit=st.integers(0, 10**6))
@settings(max_examples=300)
def test_a_flipped_bit_is_refused_or_gives_what_the_bytes_say(header: SaveHeader, bit: int) -> None:
    data = bytearray(libvirt_save.render_header(header))
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    try:
        read = libvirt_save.parse_header(bytes(data))
    except Corrupt:
        return
    assert libvirt_save.render_header(read) == data[: read.stream_offset]


# What follows the header, compressed

STREAM = b"QEVM" + bytes(3 * MIB) + b"the end" * 1000
PACK: dict[SaveFormat, Callable[[bytes], bytes]] = {
    SaveFormat.RAW: bytes,
    SaveFormat.SPARSE: bytes,
    SaveFormat.GZIP: gzip.compress,
    SaveFormat.BZIP2: bz2.compress,
    SaveFormat.XZ: lzma.compress,
    SaveFormat.ZSTD: zstandard.compress,
}
COMPRESSED = [form for form in PACK if form.is_compressed]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [7, 4096, 10**9])
@pytest.mark.parametrize("form", PACK)
def test_a_stream_is_unpacked(form: SaveFormat, size: int) -> None:
    out = list(compression.iter_unpacked(cut(PACK[form](STREAM), size), form))
    same = b"".join(out) == STREAM
    assert same
    assert not form.is_compressed or max(map(len, out)) <= compression.PIECE


@pytest.mark.parametrize("form", COMPRESSED)
def test_only_what_is_needed_is_asked_for(form: SaveFormat) -> None:
    """Of a file that unpacks to very much, the first piece comes before the rest is looked at."""
    packed = PACK[form](bytes(64 * MIB))
    pieces = iter([packed])
    first = next(compression.iter_unpacked(pieces, form))
    assert 0 < len(first) <= compression.PIECE


@pytest.mark.parametrize("form", COMPRESSED)
def test_damage_in_a_compressed_stream_is_refused(form: SaveFormat) -> None:
    packed = bytearray(PACK[form](STREAM))
    packed[1] ^= 0xFF
    with pytest.raises(Corrupt) as caught:
        list(compression.iter_unpacked([bytes(packed)], form))
    assert caught.value.code == "bad-compression"


@pytest.mark.parametrize("form", [form for form in COMPRESSED if form is not SaveFormat.ZSTD])
def test_a_compressed_stream_that_is_cut_off_is_refused(form: SaveFormat) -> None:
    with pytest.raises(Corrupt) as caught:
        list(compression.iter_unpacked([PACK[form](STREAM)[:-9]], form))
    assert caught.value.code == "bad-compression"


def test_lzop_is_said_to_be_unsupported() -> None:
    with pytest.raises(Unsupported) as caught:
        list(compression.iter_unpacked([b"\x89LZO"], SaveFormat.LZOP))
    assert caught.value.code == "no-lzop"
