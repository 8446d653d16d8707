"""Read what a disk holds, layer by layer, as the guest saw it: clusters of qcow2 files put into the disk's order.

A secret that lies across two clusters is in one piece on the disk, though hardly ever in the file. So each layer is read as
the disk looked when that layer was its top: the runs of clusters that it holds itself, and beyond both ends of each run a
few bytes of what the layers below have there.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ..errors import Corrupt, StoreError
from ..formats import qcow2
from ..formats.qcow2_clusters import Cluster, ClusterKind, Tables, parse_tables
from . import files

_BLOCK = 512 * 1024
_DEEPEST = 1000  # layers; more are a circle


def find_layers(top: Path) -> list[Path]:
    """Return the files of a disk from `top` down, as their headers name them.

    Raises:
        StoreError: one cannot be read.
    """
    found = [top]
    while True:
        head = _read_head(found[-1])
        if not head.startswith(qcow2.MAGIC):
            return found
        backing = qcow2.parse_header(head).backing
        if not backing:
            return found
        found.append(found[-1].parent / backing)
        if len(found) > _DEEPEST:
            raise Corrupt(
                "a disk's layers stand on each other in a circle", code="bad-qcow2", on=str(top), seen=backing
            )


def format_of(layer: Path) -> str:
    """Return "qcow2" or "raw".

    Raises:
        StoreError: it cannot be read.
    """
    return "qcow2" if _read_head(layer).startswith(qcow2.MAGIC) else "raw"


class Disk:
    """An open disk, from one of its layers down; use it as a context manager."""

    def __init__(self, layers: list[Path]) -> None:
        self._open = ExitStack()
        self._layers: list[_Layer] = []
        try:
            for path in layers:
                layer = _Layer(path)
                self._open.callback(layer.close)
                self._layers.append(layer)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read_own(self, edge: int) -> Iterator[tuple[int, bytes]]:
        """Yield offset on the disk and bytes of all that the top layer holds itself, in order.

        Args:
            edge: how many bytes before and behind each run come with it.
        """
        top = self._layers[0]
        for start, end in top.runs():
            start, end = max(0, start - edge), min(top.size_bytes, end + edge)
            for at in range(start, end, _BLOCK):
                yield at, self.read(at, min(_BLOCK, end - at))

    def read(self, offset: int, size: int) -> bytes:
        """Return what the guest reads there."""
        return self._read(0, offset, size)

    def _read(self, depth: int, offset: int, size: int) -> bytes:
        """Return what the layer at `depth` and those below it make of [offset, offset + size)."""
        if depth == len(self._layers):
            return bytes(size)
        layer = self._layers[depth]
        parts, end = [], offset + size
        while offset < end:
            if offset >= layer.size_bytes:  # a disk that was made larger: zeros from there
                parts.append(bytes(end - offset))
                break
            cluster, until = layer.find(offset)
            until = min(until, end)
            if cluster is None:
                parts.append(self._read(depth + 1, offset, until - offset))
            else:
                parts.append(layer.read(cluster, offset, until - offset))
            offset = until
        return b"".join(parts)


class _Layer:
    """One file: qcow2, or raw, which is like one whose every cluster is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise files.explain(error, "reading a disk layer", path) from error
        self._tables: Tables | None = None
        self._clusters: list[Cluster] = []
        try:
            head = _read_head(path)
            if head.startswith(qcow2.MAGIC):
                self._tables = parse_tables(head)
                self._clusters = sorted(self._map(self._tables), key=lambda cluster: cluster.guest)
        except BaseException:
            self.close()
            raise
        self._starts = [cluster.guest for cluster in self._clusters]
        self._inflated: tuple[int, bytes] = (-1, b"")
        self.size_bytes = self._tables.size_bytes if self._tables else os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the disk that are in this file, adjoining ones as one; zeros are none."""
        if self._tables is None:
            yield from ((at, at + length) for at, length in files.data_ranges(self._fd, self.size_bytes))
            return
        start = end = -1
        for cluster in self._clusters:
            if cluster.kind is ClusterKind.ZERO:
                continue
            if cluster.guest != end:
                if start >= 0:
                    yield start, end
                start = cluster.guest
            end = cluster.guest + self._extent(cluster)
        if start >= 0:
            yield start, end

    def find(self, offset: int) -> tuple[Cluster | None, int]:
        """Return the cluster that has `offset`, None where this layer has none, and up to where that holds."""
        if self._tables is None:
            return Cluster(0, ClusterKind.PLAIN, 0, self.size_bytes), self.size_bytes
        index = bisect.bisect_right(self._starts, offset) - 1
        if index >= 0:
            cluster = self._clusters[index]
            end = cluster.guest + self._extent(cluster)
            if offset < end:
                return cluster, end
        following = self._starts[index + 1] if index + 1 < len(self._starts) else self.size_bytes
        return None, following

    def read(self, cluster: Cluster, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` of the disk on, all of them in `cluster`."""
        inside = offset - cluster.guest
        if cluster.kind is ClusterKind.ZERO:
            return bytes(size)
        if cluster.kind is ClusterKind.COMPRESSED:
            return self._inflate(cluster)[inside : inside + size]
        data = os.pread(self._fd, size, cluster.offset + inside)
        return data.ljust(size, b"\0")  # the file's end may be a hole that was never written

    def _inflate(self, cluster: Cluster) -> bytes:
        if self._inflated[0] != cluster.guest:
            assert self._tables is not None
            data = os.pread(self._fd, cluster.size_bytes, cluster.offset)
            self._inflated = (cluster.guest, self._tables.inflate(data))
        return self._inflated[1]

    def _extent(self, cluster: Cluster) -> int:
        if cluster.kind is ClusterKind.COMPRESSED and self._tables is not None:
            return self._tables.cluster_bytes
        return cluster.size_bytes

    def _map(self, tables: Tables) -> Iterator[Cluster]:
        l1 = os.pread(self._fd, tables.l1_entries * 8, tables.l1_offset)
        for guest, offset in tables.parse_l1(l1[: len(l1) // 8 * 8]):
            l2 = os.pread(self._fd, tables.l2_bytes, offset)
            if len(l2) != tables.l2_bytes:
                raise Corrupt(
                    "a disk layer is damaged: a table lies beyond its end",
                    code="bad-qcow2",
                    tried="reading a qcow2 image",
                    on=str(self.path),
                    seen=f"L2 table at {offset}",
                    next_step=f"qemu-img check {self.path}",
                )
            yield from tables.parse_l2(l2, guest)


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(qcow2.HEADER_BYTES)
    except OSError as error:
        explained: StoreError = files.explain(error, "reading a disk layer", path)
        raise explained from error
