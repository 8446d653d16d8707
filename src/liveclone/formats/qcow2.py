"""The qcow2 header: written for an empty overlay, read to know what a disk is before QEMU sees it.

    cluster 0    header, extensions (format of the backing file), name of the backing file
    then         refcount table | refcount blocks | L1 table (all zero: every read goes to the backing file)

Rendering the few clusters takes microseconds, and no process is forked for them (`qemu-img create`: 10 ms). What is
not written here is left to QEMU. Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import Corrupt, Refused
from ..units import render_size

MAGIC = b"QFI\xfb"
HEADER_BYTES = (
    1024 * 1024
)  # enough to parse any header: the name lies in the first cluster, 2 MiB at most in theory

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")  # what version 3 adds
_EXTENSION = struct.Struct(">II")
_FORMAT_NAME = 0xE2792ACA
_HEADER_LENGTH = _V2.size + _V3.size  # 104

_REFCOUNT_ORDER = 4  # 16-bit counts, QEMU's default
_COPIED = 1 << 63
_SECTOR = 512
_MAX_NAME = 1023
_MAX_L1_BYTES = 32 * 1024 * 1024  # QCOW_MAX_L1_SIZE, block/qcow2.h
_CLUSTER_BITS = range(9, 22)

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_FEATURES = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2


@dataclass(frozen=True)
class Qcow2Header:
    """What a header says. `backing` is empty without a backing file, `backing_format` where it is not told."""

    version: int
    size_bytes: int
    cluster_bits: int
    backing: str
    backing_format: str
    incompatible_features: int
    encrypted: bool

    @property
    def dirty(self) -> bool:
        """Its reference counts may be wrong; QEMU mends them when it opens the image for writing."""
        return bool(self.incompatible_features & _DIRTY)

    @property
    def corrupt(self) -> bool:
        """QEMU found it damaged and refuses to write it."""
        return bool(self.incompatible_features & _CORRUPT)

    @property
    def has_data_file(self) -> bool:
        """The contents lie in another file."""
        return bool(self.incompatible_features & _DATA_FILE)

    @property
    def unknown_features(self) -> int:
        return self.incompatible_features & ~_KNOWN_FEATURES


def render_overlay(backing: str, backing_format: str, size_bytes: int, cluster_bits: int = 16) -> bytes:
    """Return an image of `size_bytes` that reads as its backing file throughout.

    Args:
        backing: path of the backing file, absolute or relative to the overlay's folder.
        backing_format: its format for QEMU ("qcow2", "raw"), so that it is never guessed.
        size_bytes: the virtual size, whole sectors of 512 bytes.
        cluster_bits: 9 to 21; 16 (64 KiB) is QEMU's default.

    Raises:
        Refused: a value that QEMU would not take, or would take for something else.
    """
    name = _check_overlay(backing, size_bytes, cluster_bits)
    cluster = 1 << cluster_bits
    l1_entries = _divide(size_bytes, cluster * (cluster // 8))
    if l1_entries * 8 > _MAX_L1_BYTES:
        raise _refuse(
            f"a disk of {render_size(size_bytes)} is too large for clusters of {render_size(cluster)}"
        )
    l1_clusters = max(1, _divide(l1_entries * 8, cluster))
    blocks, table_clusters = _plan_refcounts(1 + l1_clusters, cluster)
    block_offset = (1 + table_clusters) * cluster
    l1_offset = block_offset + blocks * cluster

    extension = _pad(backing_format.encode(), 8)
    extensions = _EXTENSION.pack(_FORMAT_NAME, len(backing_format)) + extension + _EXTENSION.pack(0, 0)
    name_offset = _HEADER_LENGTH + len(extensions)
    if name_offset + len(name) > cluster:
        raise _refuse(f"the backing file's name does not fit into a cluster of {cluster} bytes")
    header = _V2.pack(
        *(MAGIC, 3, name_offset, len(name), cluster_bits, size_bytes),
        *(0, l1_entries, l1_offset, cluster, table_clusters, 0, 0),
    ) + _V3.pack(0, 0, 0, _REFCOUNT_ORDER, _HEADER_LENGTH)

    table = b"".join(struct.pack(">Q", block_offset + index * cluster) for index in range(blocks))
    used = 1 + table_clusters + blocks + l1_clusters
    parts = (
        (header + extensions + name, 1),
        (table, table_clusters),
        (struct.pack(">H", 1) * used, blocks),
        (b"", l1_clusters),
    )
    return b"".join(data.ljust(count * cluster, b"\0") for data, count in parts)


def parse_header(data: bytes) -> Qcow2Header:
    """Return what the first bytes of an image say; HEADER_BYTES are always enough.

    Raises:
        Refused: it is not qcow2, or of a version that is neither 2 nor 3.
        Corrupt: it is cut short, or contradicts itself.
    """
    if data[:4] != MAGIC:
        raise _refuse("it is not a qcow2 image", code="not-qcow2")
    if len(data) < _V2.size:
        raise _corrupt(f"the header ends after {len(data)} bytes")
    _, version, name_offset, name_length, cluster_bits, size_bytes, crypt, *_ = _V2.unpack_from(data)
    if version not in (2, 3):
        raise _refuse(f"it is of qcow2 version {version}", code="unknown-version")
    if cluster_bits not in _CLUSTER_BITS:
        raise _corrupt(f"cluster_bits is {cluster_bits}")
    features, length = 0, _V2.size
    if version == 3:
        if len(data) < _HEADER_LENGTH:
            raise _corrupt(f"the header ends after {len(data)} bytes")
        features, _, _, _, length = _V3.unpack_from(data, _V2.size)
        if not _HEADER_LENGTH <= length <= 1 << cluster_bits:
            raise _corrupt(f"header_length is {length}")
    return Qcow2Header(
        version=version,
        size_bytes=size_bytes,
        cluster_bits=cluster_bits,
        backing=_read_name(data, name_offset, name_length, 1 << cluster_bits),
        backing_format=_find_format(data, length, name_offset or 1 << cluster_bits),
        incompatible_features=features,
        encrypted=crypt != 0,
    )


def _read_name(data: bytes, offset: int, length: int, cluster: int) -> str:
    if not offset:
        return ""
    if length > _MAX_NAME or offset + length > cluster:
        raise _corrupt(f"the backing file's name has {length} bytes at {offset}")
    if offset + length > len(data):
        raise _corrupt("the backing file's name is cut off")
    return data[offset : offset + length].decode(errors="surrogateescape")


def _find_format(data: bytes, offset: int, end: int) -> str:
    while offset + _EXTENSION.size <= min(end, len(data)):
        kind, length = _EXTENSION.unpack_from(data, offset)
        offset += _EXTENSION.size
        if kind == 0:
            break
        if offset + length > end:
            raise _corrupt(f"header extension {kind:#x} has {length} bytes")
        if kind == _FORMAT_NAME:
            return data[offset : offset + length].decode(errors="replace")
        offset += length + -length % 8
    return ""


def _plan_refcounts(others: int, cluster: int) -> tuple[int, int]:
    """Return how many refcount blocks, and clusters of refcount table, count `others` clusters and themselves."""
    per_block = cluster * 8 >> _REFCOUNT_ORDER
    blocks = table = 1
    while True:
        need_blocks = _divide(others + blocks + table, per_block)
        need_table = _divide(need_blocks * 8, cluster)
        if (need_blocks, need_table) == (blocks, table):
            return blocks, table
        blocks, table = need_blocks, need_table


def _check_overlay(backing: str, size_bytes: int, cluster_bits: int) -> bytes:
    name = backing.encode(errors="surrogateescape")
    head = backing.split("/", 1)[0]
    if not name or len(name) > _MAX_NAME or b"\0" in name:
        raise _refuse(f"a backing file's name has 1 to {_MAX_NAME} bytes, this one {len(name)}")
    if ":" in head:
        # QEMU reads what stands before the first colon as a protocol ("nbd:", "json:").
        raise _refuse(
            f"the backing file's name {backing!r} would be taken for a protocol", advice="write ./ before it"
        )
    if size_bytes <= 0 or size_bytes % _SECTOR:
        raise _refuse(f"{size_bytes} bytes are not a disk's size: it is a multiple of {_SECTOR}")
    if cluster_bits not in _CLUSTER_BITS:
        raise _refuse(f"clusters of 2^{cluster_bits} bytes do not exist in qcow2")
    return name


def _divide(number: int, by: int) -> int:
    return -(-number // by)


def _pad(data: bytes, boundary: int) -> bytes:
    return data + bytes(-len(data) % boundary)


def _refuse(seen: str, *, code: str = "bad-disk", advice: str = "qemu-img info FILE") -> Refused:
    return Refused(
        f"the disk image is refused: {seen}", code=code, tried="qcow2", seen=seen, next_step=advice
    )


def _corrupt(seen: str) -> Corrupt:
    return Corrupt(
        f"the qcow2 header is damaged: {seen}",
        code="bad-qcow2",
        tried="reading a qcow2 header",
        seen=seen,
        next_step="qemu-img check FILE",
    )
