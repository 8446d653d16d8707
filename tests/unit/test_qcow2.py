"""The qcow2 header, written and read back; tests/host/test_images_qcow2.py asks QEMU about the same bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Corrupt, LivecloneError, Refused
from liveclone.formats import qcow2
from liveclone.units import GIB, MIB, PAGE

TIB = 1024 * GIB

sizes = st.integers(1, 16 * TIB // 512).map(lambda sectors: sectors * 512)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)


@given(size_bytes=sizes, name=names)
def test_what_is_written_is_read_back(size_bytes: int, name: str) -> None:
    header = qcow2.parse_header(qcow2.render_overlay("/" + name, "qcow2", size_bytes))
    assert header == qcow2.Qcow2Header(
        version=3,
        size_bytes=size_bytes,
        cluster_bits=16,
        backing="/" + name,
        backing_format="qcow2",
        incompatible_features=0,
        encrypted=False,
    )
    assert (
        not header.dirty and not header.corrupt and not header.has_data_file and not header.unknown_features
    )


@given(
    size_bytes=st.integers(1, 128 * GIB // 512).map(lambda sectors: sectors * 512), bits=st.integers(9, 21)
)
def test_every_cluster_is_counted_once(size_bytes: int, bits: int) -> None:
    data = qcow2.render_overlay("/b", "raw", size_bytes, bits)
    cluster = 1 << bits
    l1_entries, l1_offset, table_offset, table_clusters = struct.unpack_from(">IQQI", data, 36)
    assert len(data) % cluster == 0
    assert l1_offset % cluster == 0
    assert l1_entries * (cluster // 8) * cluster >= size_bytes
    blocks = [
        offset
        for (offset,) in struct.iter_unpack(
            ">Q", data[table_offset : table_offset + table_clusters * cluster]
        )
    ]
    counts = [
        count
        for block in blocks
        if block
        for (count,) in struct.iter_unpack(">H", data[block : block + cluster])
    ]
    used = len(data) // cluster
    assert counts[:used] == [1] * used
    assert not any(counts[used:])


def test_an_overlay_of_the_usual_size_is_four_clusters() -> None:
    assert len(qcow2.render_overlay("/images/debian/disk.qcow2", "qcow2", 4 * GIB)) == 4 * 64 * 1024


@pytest.mark.parametrize(
    ("name", "size_bytes", "bits", "words"),
    [
        ("", GIB, 16, "1 to 1023 bytes"),
        ("/" + "x" * 1023, GIB, 16, "1 to 1023 bytes"),
        ("/a\0b", GIB, 16, "1 to 1023 bytes"),
        ("nbd:localhost", GIB, 16, "protocol"),
        ("json:{}", GIB, 16, "protocol"),
        ("/b", 0, 16, "multiple of 512"),
        ("/b", -512, 16, "multiple of 512"),
        ("/b", GIB + 1, 16, "multiple of 512"),
        ("/b", GIB, 8, "clusters of 2^8"),
        ("/b", GIB, 22, "clusters of 2^22"),
        ("/b", 256 * GIB, 9, "too large"),
        ("/" + "x" * 600, MIB, 9, "does not fit"),
    ],
)
def test_what_qemu_would_not_take_is_refused(name: str, size_bytes: int, bits: int, words: str) -> None:
    with pytest.raises(Refused, match=words.replace("^", r"\^")):
        qcow2.render_overlay(name, "qcow2", size_bytes, bits)


def test_a_colon_behind_a_slash_is_a_name() -> None:
    assert qcow2.parse_header(qcow2.render_overlay("./a:b", "raw", PAGE)).backing == "./a:b"


def test_other_formats_are_refused_and_short_headers_are_corrupt() -> None:
    whole = qcow2.render_overlay("/b", "qcow2", GIB)
    with pytest.raises(Refused) as refused:
        qcow2.parse_header(b"KDMV" + bytes(200))
    assert refused.value.code == "not-qcow2"
    with pytest.raises(Refused):
        qcow2.parse_header(b"")
    for length in (4, 71, 72, 103):
        with pytest.raises(Corrupt):
            qcow2.parse_header(whole[:length])


@pytest.mark.parametrize(
    ("offset", "field", "kind"),
    [
        (4, struct.pack(">I", 1), Refused),  # version
        (4, struct.pack(">I", 4), Refused),
        (20, struct.pack(">I", 63), Corrupt),  # cluster_bits
        (16, struct.pack(">I", 5000), Corrupt),  # length of the name
        (8, struct.pack(">Q", 1 << 40), Corrupt),  # where the name is
        (100, struct.pack(">I", 8), Corrupt),  # length of the header
        (108, struct.pack(">I", 1 << 30), Corrupt),  # length of an extension
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    offset: int, field: bytes, kind: type[LivecloneError]
) -> None:
    data = bytearray(qcow2.render_overlay("/b", "qcow2", GIB))
    data[offset : offset + len(field)] = field
    with pytest.raises(kind):
        qcow2.parse_header(bytes(data))


def test_flags_are_told_apart() -> None:
    def with_features(bits: int) -> qcow2.Qcow2Header:
        data = bytearray(qcow2.render_overlay("/b", "qcow2", GIB))
        data[72:80] = struct.pack(">Q", bits)
        return qcow2.parse_header(bytes(data))

    assert with_features(1).dirty and not with_features(1).corrupt
    assert with_features(2).corrupt and not with_features(2).dirty
    assert with_features(4).has_data_file
    assert with_features(1 << 40).unknown_features == 1 << 40


@given(st.binary(max_size=300))
def test_any_bytes_give_a_header_or_an_error_of_ours(data: bytes) -> None:
    for candidate in (data, qcow2.MAGIC + data, qcow2.MAGIC + struct.pack(">I", 3) + data):
        try:
            qcow2.parse_header(candidate)
        except (Refused, Corrupt):
            continue
