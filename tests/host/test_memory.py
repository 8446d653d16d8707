"""Looking into another process's memory: where a file is mapped, and filling its page tables."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.errors import HypervisorError, NotFound
from liveclone.host import memory
from liveclone.units import MIB, PAGE

SIZE = 8 * MIB
# More than one batch of process_vm_readv, and not a whole number of batches.
ODD = 5 * MIB + 3 * PAGE

PROGRAM = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
ram = mmap.mmap(fd, {size}, flags={flags})
other = mmap.mmap(-1, 65536)
print(os.getpid(), flush=True)
for line in sys.stdin:
    print(ram[0], flush=True)
"""


class Child:
    def __init__(self, path: Path, size: int, flags: int) -> None:
        program = textwrap.dedent(PROGRAM).format(size=size, flags=flags)
        argv = [sys.executable, "-c", program, str(path)]
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        self.pid = int(self.popen.stdout.readline())

    def end(self) -> None:
        with self.popen:
            self.popen.kill()


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    """Return a file of eight sparse megabytes on tmpfs, as guest RAM is."""
    path = Path(os.environ["LIVECLONE_HOT"]).with_name(f"{tmp_path.name}.ram")
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture(params=["shared", "private"])
def child(ram: Path, request: pytest.FixtureRequest) -> Iterator[Child]:
    child = Child(ram, SIZE, mmap.MAP_SHARED if request.param == "shared" else mmap.MAP_PRIVATE)
    yield child
    child.end()
    ram.unlink(missing_ok=True)


def test_a_mapping_is_found(child: Child, ram: Path) -> None:
    start, end = memory.find_mapping(child.pid, ram)
    assert end - start == SIZE
    assert start % PAGE == 0


def test_a_file_with_a_further_name_is_the_same_file(child: Child, ram: Path) -> None:
    other = ram.with_suffix(".other")
    ram.rename(other)
    try:
        start, end = memory.find_mapping(child.pid, other)
        assert end - start == SIZE
        with pytest.raises(NotFound):
            memory.find_mapping(child.pid, ram)
    finally:
        other.rename(ram)


def test_parts_of_one_mapping_are_one(child: Child, ram: Path) -> None:
    """The kernel splits a mapping where its pages differ in kind (written, protected); for us it is one."""
    start, end = memory.find_mapping(os.getpid(), _map_in_parts(ram))
    assert end - start == SIZE


_kept: list[mmap.mmap] = []


def _map_in_parts(path: Path) -> Path:
    with path.open("r+b") as file:
        whole = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE)
    whole.madvise(mmap.MADV_DONTDUMP, 2 * MIB, 2 * MIB)  # a flag of its own for a part
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert len(lines) == 3
    _kept[:] = [whole]
    return path


@pytest.fixture(autouse=True)
def _unmap() -> Iterator[None]:
    yield
    while _kept:
        _kept.pop().close()


def test_what_is_not_mapped_is_not_found(child: Child, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    with pytest.raises(NotFound) as caught:
        memory.find_mapping(child.pid, other)
    assert caught.value.code == "not-mapped"
    with pytest.raises(NotFound):
        memory.find_mapping(child.pid, tmp_path / "missing")


def test_a_process_that_is_gone_is_not_found(child: Child, ram: Path) -> None:
    child.end()
    with pytest.raises(NotFound) as caught:
        memory.find_mapping(child.pid, ram)
    assert caught.value.code == "not-running"


def present_pages(pid: int, start: int, end: int) -> int:
    """Count the pages in the process's page tables: /proc/PID/pagemap, bit 63."""
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(start // PAGE * 8)
        data = file.read((end - start) // PAGE * 8)
    return sum(1 for at in range(7, len(data), 8) if data[at] & 0x80)


def test_populating_fills_the_page_tables_and_changes_nothing(child: Child, ram: Path) -> None:
    start, end = memory.find_mapping(child.pid, ram)
    assert present_pages(child.pid, start, end) < 100
    memory.populate(child.pid, start, start + ODD)
    assert present_pages(child.pid, start, start + ODD) == ODD // PAGE
    assert present_pages(child.pid, start + ODD, end) < 100
    memory.populate(child.pid, start, end)
    assert present_pages(child.pid, start, end) == SIZE // PAGE
    assert ram.read_bytes() == bytes(SIZE)
    assert child.popen.stdin is not None and child.popen.stdout is not None
    child.popen.stdin.write("?\n")
    child.popen.stdin.flush()
    assert child.popen.stdout.readline() == "0\n", "the process goes on"


def test_memory_that_is_not_there_is_an_error(child: Child, ram: Path) -> None:
    start, end = memory.find_mapping(child.pid, ram)
    child.end()
    with pytest.raises(HypervisorError) as caught:
        memory.populate(child.pid, start, end)
    assert caught.value.code == "no-access"
    assert caught.value.seen == "ESRCH"


def test_memory_that_is_not_mapped_is_an_error(child: Child) -> None:
    with pytest.raises(HypervisorError) as caught:
        memory.populate(child.pid, PAGE, 3 * PAGE)
    assert caught.value.seen == "EFAULT"
