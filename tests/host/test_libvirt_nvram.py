"""Files of firmware variables: one that is written meanwhile is noticed, and a clone's own is what the stream has."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("libvirt")

from liveclone.drivers.libvirt import nvram
from liveclone.drivers.libvirt.connection import Connection
from liveclone.errors import Conflict, HypervisorError
from liveclone.formats import domain_xml, libvirt_save
from liveclone.formats.migration_stream import Splitter
from liveclone.host import process
from liveclone.model.machine import ProcessRef

UNIT = Path(__file__).parents[1] / "unit"
XML = (UNIT / "domains" / "fedora-uefi.live.xml").read_text()
PATH = "/var/lib/libvirt/qemu/nvram/fedora-uefi_VARS.fd"
VARIABLES = b"variables".ljust(131072, b"\xff")


@dataclass
class Holder:
    """A connection to a machine whose process is this one."""

    process: ProcessRef
    name: str = "sealed"


@pytest.fixture
def connection() -> Connection:
    return cast(Connection, Holder(process.ref(os.getpid())))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Yield a file of variables that a QEMU, this process, has open."""
    with (tmp_path / "VARS.fd").open("w+b", buffering=0) as file:
        file.write(VARIABLES)
        yield file


def domain(path: Path, form: str = "raw") -> domain_xml.Domain:
    changed = XML.replace(PATH, str(path)).replace(
        "_VARS_4M.fd' format='raw'", f"_VARS_4M.fd' format='{form}'"
    )
    found = domain_xml.parse_domain(changed)
    assert (found.nvram, found.nvram_format) == (str(path), form)
    return found


@pytest.fixture(scope="module")
def stream() -> bytes:
    splitter = Splitter("pc.ram")
    splitter.feed(lzma.decompress((UNIT / "streams" / "golden" / "q35-flash.xz").read_bytes()))
    return splitter.finish()


def test_variables_that_nobody_writes(connection: Connection, opened: Any) -> None:
    path = Path(opened.name)
    for form, content in (("raw", VARIABLES), ("qcow2", b"")):
        before = nvram.stamp(connection, domain(path, form))
        assert before is not None
        assert nvram.read_unwritten(connection, before) == content


def test_a_domain_without_variables(connection: Connection) -> None:
    plain = (UNIT / "domains" / "debian12.live.xml").read_text()
    assert nvram.stamp(connection, domain_xml.parse_domain(plain)) is None


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_variables_that_are_written_meanwhile(connection: Connection, opened: Any, form: str) -> None:
    os.utime(opened.name, ns=(0, 0))  # as long ago as the capture takes, at least
    before = nvram.stamp(connection, domain(Path(opened.name), form))
    assert before is not None
    os.pwrite(opened.fileno(), VARIABLES[:1], 0)  # the same again: nobody knows what was there in between
    with pytest.raises(Conflict) as caught:
        nvram.read_unwritten(connection, before)
    assert caught.value.code == "nvram-written"


def test_a_file_that_the_machine_does_not_have(connection: Connection, opened: Any, tmp_path: Path) -> None:
    path = Path(opened.name)
    before = nvram.stamp(connection, domain(path))
    assert before is not None
    shutil.copy2(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    with pytest.raises(Conflict):
        nvram.read_unwritten(connection, before)
    for other in (path, tmp_path / "nothing"):
        with pytest.raises(HypervisorError) as caught:
            nvram.stamp(connection, domain(other))
        assert caught.value.code == "other-nvram"


def test_a_stream_with_other_variables_is_refused(stream: bytes) -> None:
    nvram.check("sealed", stream, VARIABLES)
    nvram.check("sealed", stream, b"")  # of a qcow2
    with pytest.raises(HypervisorError) as caught:
        nvram.check("sealed", stream, VARIABLES[:-1] + b"\0")
    assert caught.value.code == "nvram-differs"


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_clones_own_file(stream: bytes, tmp_path: Path, form: str) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("no qemu-img")
    state, own, read = tmp_path / "state", tmp_path / nvram.FILE, tmp_path / "read"
    state.write_bytes(libvirt_save.render_header(libvirt_save.SaveHeader(XML)) + stream)
    for _ in range(2):  # once more, as after a start that failed
        nvram.write(state, own, form)
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", own, read], check=True)
    assert read.read_bytes() == VARIABLES
    assert own.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [nvram.FILE, "read", "state"]
