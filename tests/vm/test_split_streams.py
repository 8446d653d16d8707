"""What is kept of a stream is loaded by a real QEMU whose RAM already holds the pages, and the machine goes on; joined
with its memory again it is loaded by one whose RAM is new."""

from __future__ import annotations

import lzma
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from liveclone.formats import stream_join
from liveclone.formats.migration_stream import Splitter
from liveclone.host import files
from liveclone.units import PAGE
from tests.unit.streams import capture
from tests.unit.test_migration_stream import paint

pytestmark = pytest.mark.skipif(shutil.which(capture.QEMU) is None, reason="no QEMU")


def counter(file: Path) -> int:
    with file.open("rb") as memory:
        memory.seek(0x8000)
        return int.from_bytes(memory.read(2), "little")


def split(stream: bytes) -> tuple[bytes, bytes]:
    """Return state and memory; what was not in the stream is zero."""
    splitter = Splitter("pc.ram")
    runs = splitter.feed(stream)
    return splitter.finish(), paint(runs, splitter.block_bytes).replace(b"?" * PAGE, bytes(PAGE))


def load(name: str) -> tuple[bytes, bytes]:
    return split(lzma.decompress((capture.GOLDEN / f"{name}.xz").read_bytes()))


@contextmanager
def open_waiting(folder: Path, kind: str, memory: str) -> Iterator[capture.Qmp]:
    more = capture.more_devices(kind) if "." in kind else []
    qmp = capture.Qmp([*capture.machine(folder, kind, memory), *more, "-incoming", "defer", "-S"])
    with qmp.process:
        try:
            yield qmp
        finally:
            qmp.process.kill()


def take_in(qmp: capture.Qmp, stream: Path) -> None:
    qmp.call("migrate-incoming", uri=f"file:{stream}")
    end = time.monotonic() + 20
    while qmp.call("query-migrate").get("status") != "completed":
        assert time.monotonic() < end, "QEMU did not load it"


def runs_on(qmp: capture.Qmp, count: Callable[[], int]) -> None:
    before, end = count(), time.monotonic() + 20
    qmp.call("cont")
    while count() == before:
        assert time.monotonic() < end, "the machine does not count on"


@pytest.mark.parametrize(
    ("name", "kind"), [("i440fx-background", "pc"), ("q35-flash", "q35"), ("q35-mapped-ram", "q35")]
)
def test_a_page_less_stream_is_loaded(tmp_path: Path, name: str, kind: str) -> None:
    """Mapped RAM too, whose page-less stream is an ordinary one."""
    ram, stream = tmp_path / "ram", tmp_path / "stream"
    state, memory = load(name)
    ram.write_bytes(memory)
    stream.write_bytes(state)
    before = counter(ram)
    with open_waiting(tmp_path, kind, f"memory-backend-file,mem-path={ram},share=on") as qmp:
        take_in(qmp, stream)
        assert counter(ram) == before, "no page of RAM was in it"
        runs_on(qmp, lambda: counter(ram))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("i440fx-bios", "pc"),
        ("i440fx-background", "pc"),
        ("q35-flash", "q35"),
        ("q35-mapped-ram", "q35"),
        ("7.2-i440fx-bios", "pc-i440fx-7.2"),
        ("7.2-q35-flash", "pc-q35-7.2"),
        *((kind, kind) for kind in capture.VERSIONS),
    ],
)
def test_a_joined_stream_is_loaded(tmp_path: Path, name: str, kind: str) -> None:
    """All of the memory is then as it was, in a file and in memory that belongs to no file; what an older QEMU wrote too."""
    image, stream, ram = (tmp_path / name for name in ("image", "joined", "ram"))
    state, memory = load(name)
    image.write_bytes(memory)
    files.copy_sparse(image, tmp_path / "sparse")
    with (tmp_path / "sparse").open("rb") as source, stream.open("wb") as target:
        read = files.read_data(source.fileno(), len(memory))
        target.writelines(stream_join.join(state, read, size_bytes=len(memory)))
    assert stream.stat().st_size < len(state) + len(memory) // 4, "pages of zeros are not in it"

    with open_waiting(tmp_path, kind, f"memory-backend-file,mem-path={ram},share=on") as qmp:
        assert ram.stat().st_blocks == 0, "QEMU itself writes to memory that it is going to load"
        take_in(qmp, stream)
        same = ram.read_bytes() == memory
        assert same
        runs_on(qmp, lambda: counter(ram))

    with open_waiting(tmp_path, kind, "memory-backend-ram") as qmp:
        take_in(qmp, stream)
        qmp.migrate(f"file:{tmp_path / 'again'}")
        same = split((tmp_path / "again").read_bytes())[1] == memory
        assert same

        def count() -> int:
            qmp.call("pmemsave", val=0, size=0x10000, filename=str(ram))
            return counter(ram)

        runs_on(qmp, count)
