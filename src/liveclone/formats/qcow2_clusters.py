"""Where in a qcow2 file each cluster of the disk lies: its tables, parsed. Reading the file is left to others.

    L1 table: one entry for each L2 table ── L2 table: one entry for each cluster of the disk ── PLAIN at an offset
                                                                                             ├─ COMPRESSED, some bytes at one
                                                                                             ├─ ZERO: reads as zeros
                                                                                             └─ not there: the backing file's

Source: QEMU, docs/interop/qcow2.txt ("Cluster mapping").
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import Corrupt, Unsupported
from . import qcow2

_FIELDS = struct.Struct(">20xIQ4xIQ")  # cluster_bits, size, l1_size, l1_table_offset
_COMPRESSION_AT = 104
_COMPRESSION = 1 << 3
_EXTENDED_L2 = 1 << 4
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO = 1
_SECTOR = 512
_SUBCLUSTERS = 32


class ClusterKind(enum.Enum):
    PLAIN = "plain"
    ZERO = "zero"
    COMPRESSED = "compressed"


@dataclass(frozen=True)
class Cluster:
    """`size_bytes` at `offset` of the file are what the disk has from `guest` on."""

    guest: int
    kind: ClusterKind
    offset: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class Tables:
    """Where the tables of an image are, and how they are read."""

    size_bytes: int
    cluster_bytes: int
    l1_offset: int
    l1_entries: int
    is_zstd: bool
    has_subclusters: bool

    @property
    def l2_bytes(self) -> int:
        """The size of an L2 table: one cluster."""
        return self.cluster_bytes

    def parse_l1(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield, of each L2 table that there is, which part of the disk it maps and where in the file it lies."""
        entry = 16 if self.has_subclusters else 8
        covered = self.cluster_bytes // entry * self.cluster_bytes
        for index, (value,) in enumerate(struct.iter_unpack(">Q", data)):
            if value & _OFFSET:
                yield index * covered, value & _OFFSET

    def parse_l2(self, data: bytes, guest: int) -> Iterator[Cluster]:
        """Yield the clusters that an L2 table maps, of those from the disk's `guest` on; in subclusters if it has them."""
        if self.has_subclusters:
            for index, (value, bits) in enumerate(struct.iter_unpack(">QQ", data)):
                yield from self._subclusters(guest + index * self.cluster_bytes, value, bits)
            return
        for index, (value,) in enumerate(struct.iter_unpack(">Q", data)):
            at = guest + index * self.cluster_bytes
            if not value or at >= self.size_bytes:
                continue
            if value & _COMPRESSED:
                yield self._compressed(at, value)
            elif value & _ZERO:
                yield Cluster(at, ClusterKind.ZERO, 0, self.cluster_bytes)
            elif value & _OFFSET:
                yield Cluster(at, ClusterKind.PLAIN, value & _OFFSET, self.cluster_bytes)

    def inflate(self, data: bytes) -> bytes:
        """Return a cluster from its compressed bytes, behind which others may stand.

        Raises:
            Corrupt: they are none.
        """
        try:
            if self.is_zstd:
                import zstandard  # hardly ever

                with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                    found = reader.read(self.cluster_bytes)
            else:
                found = zlib.decompressobj(-12).decompress(data, self.cluster_bytes)
        except Exception as error:  # each library has its own
            raise _corrupt(f"a compressed cluster: {error}") from error
        return found.ljust(self.cluster_bytes, b"\0")

    def _compressed(self, guest: int, value: int) -> Cluster:
        offset_bits = 62 - (self.cluster_bytes.bit_length() - 1 - 8)
        offset = value & ((1 << offset_bits) - 1)
        sectors = (value & (_COMPRESSED - 1)) >> offset_bits
        size = (sectors + 1) * _SECTOR - offset % _SECTOR
        return Cluster(guest, ClusterKind.COMPRESSED, offset, size)

    def _subclusters(self, guest: int, value: int, bits: int) -> Iterator[Cluster]:
        if guest >= self.size_bytes:
            return
        if value & _COMPRESSED:
            yield self._compressed(guest, value)
            return
        size = self.cluster_bytes // _SUBCLUSTERS
        for index in range(_SUBCLUSTERS):
            at = guest + index * size
            if bits >> index & 1:
                yield Cluster(at, ClusterKind.PLAIN, (value & _OFFSET) + index * size, size)
            elif bits >> (32 + index) & 1:
                yield Cluster(at, ClusterKind.ZERO, 0, size)


def parse_tables(data: bytes) -> Tables:
    """Return where an image's tables are; qcow2.HEADER_BYTES of it are always enough.

    Raises:
        Refused, Corrupt: as `qcow2.parse_header`. Unsupported: what it holds is encrypted, or in another file.
    """
    header = qcow2.parse_header(data)
    if header.encrypted or header.has_data_file or header.unknown_features:
        raise Unsupported(
            "the disk layer's contents cannot be read from its file",
            code="opaque-disk",
            tried="reading qcow2 tables",
            seen="it is encrypted" if header.encrypted else f"features {header.incompatible_features:#x}",
            next_step="qemu-img convert it into a plain one",
        )
    bits, size, l1_entries, l1_offset = _FIELDS.unpack_from(data)
    features = header.incompatible_features
    return Tables(
        size_bytes=size,
        cluster_bytes=1 << bits,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        is_zstd=bool(features & _COMPRESSION) and data[_COMPRESSION_AT] == 1,
        has_subclusters=bool(features & _EXTENDED_L2),
    )


def _corrupt(seen: str) -> Corrupt:
    return Corrupt(
        "a disk layer is damaged",
        code="bad-qcow2",
        tried="reading a qcow2 image",
        seen=seen,
        next_step="qemu-img check FILE",
    )
