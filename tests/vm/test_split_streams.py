"""What is kept of a stream is loaded by a real QEMU whose RAM already holds the pages, and the machine goes on."""

from __future__ import annotations

import lzma
import shutil
import time
from pathlib import Path

import pytest

from liveclone.formats.migration_stream import Splitter
from tests.unit.streams import capture
from tests.unit.test_migration_stream import paint


def counter(file: Path) -> int:
    with file.open("rb") as memory:
        memory.seek(0x8000)
        return int.from_bytes(memory.read(2), "little")


@pytest.mark.skipif(shutil.which(capture.QEMU) is None, reason="no QEMU")
@pytest.mark.parametrize(
    ("name", "kind"), [("i440fx-background", "pc"), ("q35-flash", "q35"), ("q35-mapped-ram", "q35")]
)
def test_a_page_less_stream_is_loaded(tmp_path: Path, name: str, kind: str) -> None:
    """Mapped RAM too, whose page-less stream is an ordinary one."""
    splitter = Splitter("pc.ram")
    runs = splitter.feed(lzma.decompress((capture.GOLDEN / f"{name}.xz").read_bytes()))
    ram, stream = tmp_path / "ram", tmp_path / "stream"
    ram.write_bytes(paint(runs, splitter.block_bytes))
    stream.write_bytes(splitter.finish())
    before = counter(ram)
    memory = f"memory-backend-file,mem-path={ram},share=on"
    qmp = capture.Qmp([*capture.machine(tmp_path, kind, memory), "-incoming", "defer", "-S"])
    with qmp.process:
        try:
            qmp.call("migrate-incoming", uri=f"file:{stream}")
            end = time.monotonic() + 20
            while qmp.call("query-migrate").get("status") != "completed":
                assert time.monotonic() < end, "QEMU did not load it"
            assert counter(ram) == before, "no page of RAM was in it"
            qmp.call("cont")
            while counter(ram) == before:
                assert time.monotonic() < end, "the machine does not count on"
        finally:
            qmp.process.kill()
