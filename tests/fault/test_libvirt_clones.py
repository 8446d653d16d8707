"""A clone's QEMU dies at each step of its becoming one, and what it is to come from is damaged, or another libvirt's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liveclone.drivers.libvirt import split
from liveclone.engine import parts
from liveclone.errors import Corrupt, LivecloneError, Unsupported
from liveclone.host import process
from liveclone.model.snapshot import Snapshot
from tests.fault.domains import Shop, doing_at
from tests.machines import check_clear, kill

WHEN_IT_HAS_ONE = ["clone.loaded", "clone.restored", "clone.resumed", "clone.identified", "clone.verified"]


def fails_to_clone(shop: Shop, taken: Snapshot) -> LivecloneError:
    """Ask for a clone, and return why there is none; nothing of it may be left, and the source is as it was."""
    before = len(shop.connection.listAllDomains())
    try:
        (result,) = shop.lab.results(taken, names=["doomed"])
        error = result.error
    except LivecloneError as refused:
        error = refused
    assert error is not None
    check_clear(error, source_state="not touched")
    assert len(shop.connection.listAllDomains()) == before
    assert shop.lab.repair() == []
    assert shop.find_left() == []
    shop.check()
    return error


@pytest.mark.parametrize("point", WHEN_IT_HAS_ONE)
def test_its_qemu_dies(shop: Shop, taken: Snapshot, point: str) -> None:
    def end_it() -> None:
        (pid,) = [pid for pid, line in process.find("guest=doomed,") if "qemu-system" in line]
        kill(process.ref(pid))

    with doing_at(point, end_it) as errors:
        error = fails_to_clone(shop, taken)
    assert errors == []
    assert error.next_step == f"liveclone clone {taken.name}", error.fields()


def test_another_hypervisor(shop: Shop, taken: Snapshot) -> None:
    snapshots = shop.lab.ctx.snapshots
    shop.lab.snapshots_sealed()
    for other in ("libvirt 9.0.0, qemu 7.2.9", "libvirt 11.3.0, qemu 9.2.1", "qemu 10.0.2"):
        good = snapshots.load(taken.id)
        snapshots.save(good.replace(hardware=good.hardware.replace(hypervisor=other)))
        error = fails_to_clone(shop, taken)
        snapshots.save(good)
        assert isinstance(error, Unsupported)
        assert error.code == "other-hypervisor"
        assert other in error.message


def flip(path: Path, at: int) -> None:
    with path.open("r+b", buffering=0) as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), at)


@pytest.mark.parametrize("name", ["header", "xml", "stream", "memory", "disk"])
def test_damaged(shop: Shop, taken: Snapshot, name: str) -> None:
    sealed = shop.lab.wait_sealed(taken)
    folder = shop.lab.ctx.layout.snapshot(taken.id)
    state = folder / parts.STATE
    assert sealed.hot is not None
    path, at = {
        "header": (state, 3),
        "xml": (state, 400),
        "stream": (state, state.stat().st_size - 2000),
        "memory": (Path(sealed.hot.path), 100 << 20),
        "disk": (folder / sealed.disk.file, 65000),
    }[name]
    flip(path, at)
    try:
        error = fails_to_clone(shop, taken)
    finally:
        flip(path, at)
    assert isinstance(error, Corrupt)
    assert (error.code, error.on) == ("damaged-part", str(path))
    if name == "memory":  # only the content counts
        shop.clone(taken)


@pytest.mark.parametrize("name", ["header", "xml", "stream", "end"])
def test_damaged_before_its_digest_was_taken(shop: Shop, taken: Snapshot, name: str) -> None:
    """Then libvirt, QEMU or our reader finds it. What is started for it is ended."""
    snapshots = shop.lab.ctx.snapshots
    shop.lab.snapshots_sealed()
    good = snapshots.load(taken.id)
    state = shop.lab.ctx.layout.snapshot(taken.id) / parts.STATE
    whole = state.read_bytes()
    stream = split.read_header(state).stream_offset
    at = {"header": 3, "xml": whole.index(b"<name>") + 1, "stream": stream + 40}
    if name == "end":
        state.write_bytes(whole[: (stream + len(whole)) // 2])  # its last tenth is for people, and not missed
    else:
        flip(state, at[name])
    try:
        snapshots.save(good.replace(device_state=parts.part(state, with_digest=True)))
        fails_to_clone(shop, taken)
    finally:
        state.write_bytes(whole)
        snapshots.save(good)
