"""A byte flips in a snapshot: every clone of it is refused before QEMU is started, by the part's name.

    part           found by
    state          its digest, for every clone
    memory (hot)   its stamp, then its digest; before it has one (not sealed yet) it is refused by the stamp alone
    memory (disk)  the same, when the hot one is gone
    disk.qcow2     the same
    manifest.json  its checksum

What no stamp shows, a root user who writes through a shared mapping, is not found (docs/adr/0002).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.engine import seal
from liveclone.errors import Corrupt, LivecloneError, StoreError, Unsupported
from liveclone.host import process
from liveclone.model.machine import Acceleration, Hardware
from liveclone.model.snapshot import CaptureMethod, Snapshot
from tests.fault.conftest import Sources
from tests.machines import Lab, check_clear

# The last bytes of a qcow2 layer's first cluster are behind its header, and nobody's: the source, whose disk stands on it,
# does not notice. The others are not read by the source at all.
UNUSED = 65000


@contextlib.contextmanager
def flipped(path: Path, *, keep_times: bool) -> Iterator[None]:
    """Flip one bit in the middle of a file; on the way out its content is as it was."""
    before = path.stat()
    at = UNUSED if path.suffix == ".qcow2" else before.st_size // 2
    _flip(path, at)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    yield
    _flip(path, at)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b", buffering=0) as file:  # its mode does not stop root
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), at)


def take(lab: Lab, sources: Sources) -> Snapshot:
    """Take a snapshot in the background: its memory image is a copy, which the source does not map."""
    return lab.snapshot(sources.any(), method=CaptureMethod.BACKGROUND)


def part_of(lab: Lab, taken: Snapshot, name: str) -> Path:
    assert taken.hot is not None
    return Path(taken.hot.path) if name == "hot" else lab.ctx.layout.snapshot(taken.id) / name


def check_refused(lab: Lab, sources: Sources, taken: Snapshot, kind: type[LivecloneError]) -> LivecloneError:
    """Ask for two clones; fail unless that is refused, clearly, and nothing was started."""
    before = lab.qemus(), [machine.id for machine in lab.ctx.machines.list()]
    with pytest.raises(kind) as refused:
        lab.results(taken, 2)
    check_clear(refused.value, source_state="not touched")
    assert (lab.qemus(), [machine.id for machine in lab.ctx.machines.list()]) == before
    sources.check()
    return refused.value


@pytest.mark.parametrize("keep_times", [False, True], ids=["written", "mtime-put-back"])
@pytest.mark.parametrize("name", ["state", "hot", "disk.qcow2"])
def test_a_part(lab: Lab, sources: Sources, name: str, keep_times: bool) -> None:
    sealed = lab.wait_sealed(take(lab, sources))
    path = part_of(lab, sealed, name)
    with flipped(path, keep_times=keep_times):
        error = check_refused(lab, sources, sealed, Corrupt)
        assert (error.code, error.on) == ("damaged-part", str(path))
        assert error.seen == "its content is not what was captured"
        assert sealed.name in error.message
    # Only the content counts: what has the right digest again is as good as ever.
    lab.remove(lab.clone(sealed))


@pytest.mark.parametrize("name", ["hot", "disk.qcow2"])
def test_a_part_that_has_no_digest_yet(lab: Lab, sources: Sources, name: str) -> None:
    """Before sealing is done a write is all that can be known: it is refused, and not sealed either."""
    taken = take(lab, sources)
    for pid, line in process.find(taken.id):
        if seal.__name__ in line:
            lab.wait(process.end(process.ref(pid)))
    assert lab.ctx.snapshots.load(taken.id).state.value == "ready"
    path = part_of(lab, taken, name)
    with flipped(path, keep_times=True):
        error = check_refused(lab, sources, taken, Corrupt)
        assert (error.code, error.on) == ("damaged-part", str(path))
        assert error.seen == "it was written to before its digest was taken"
        with pytest.raises(StoreError) as unsealed:
            lab.wait(seal.wait(lab.ctx, taken, seal.start(lab.ctx, taken)))
    check_clear(unsealed.value, source_state="running")
    assert "damaged-part" in unsealed.value.seen
    assert not (lab.ctx.layout.snapshot(taken.id) / "memory").exists()


def test_the_durable_memory_image_when_the_hot_one_is_gone(lab: Lab, sources: Sources) -> None:
    sealed = lab.wait_sealed(take(lab, sources))
    part_of(lab, sealed, "hot").unlink()  # what a reboot of the host does
    path = part_of(lab, sealed, "memory")
    with flipped(path, keep_times=True):
        error = check_refused(lab, sources, sealed, Corrupt)
        assert (error.code, error.on) == ("damaged-part", str(path))
    lab.remove(lab.clone(sealed))


@pytest.mark.parametrize("name", ["state", "hot", "disk.qcow2"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_part_that_is_cut_or_gone(lab: Lab, sources: Sources, name: str, how: str) -> None:
    taken = take(lab, sources)
    lab.snapshots_sealed()
    path = part_of(lab, taken, name)
    kept = path.with_name("kept")  # the source has the layer open: it keeps its file, and only the name goes
    path.rename(kept)
    if how == "cut":
        path.write_bytes(kept.read_bytes()[:-1])
    if (name, how) == ("hot", "gone"):
        path = part_of(lab, taken, "memory")  # the durable copy takes its place, unless that is gone too
        path.unlink()
    error = check_refused(lab, sources, taken, Corrupt)
    assert (error.code, error.on) == ("damaged-part", str(path))
    kept.rename(part_of(lab, taken, name))


def test_the_manifest(lab: Lab, sources: Sources) -> None:
    taken = take(lab, sources)
    lab.snapshots_sealed()
    path = lab.ctx.layout.snapshot(taken.id) / "manifest.json"
    with flipped(path, keep_times=True):
        with pytest.raises(Corrupt) as refused:
            lab.results(taken)
        assert (refused.value.code, refused.value.on) == ("bad-manifest", str(path))
        check_clear(refused.value, source_state="not touched")
        assert len(lab.qemus()) == 1
    lab.remove(lab.clone(taken))


def test_a_snapshot_whose_manifest_is_damaged_can_be_removed(lab: Lab, sources: Sources) -> None:
    """As the error says: by its id. Meanwhile the source runs, and nothing that belongs to others goes."""
    taken = take(lab, sources)
    lab.snapshots_sealed()
    path = lab.ctx.layout.snapshot(taken.id) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-2])
    for wanted in (taken.name, taken.id):
        with pytest.raises(Corrupt) as refused:
            lab.ctx.snapshots.find(wanted)
        assert f"liveclone snapshot remove {taken.id}" in refused.value.next_step
    lab.remove_snapshot(taken)
    # Its frozen layer stays: the source stands on it.
    assert [left.name for left in path.parent.iterdir()] == ["disk.qcow2"]
    assert not part_of(lab, taken, "hot").exists()
    sources.check()


@pytest.mark.parametrize("what", ["an older QEMU", "another accelerator", "no QEMU at all"])
def test_a_snapshot_from_another_hypervisor(lab: Lab, sources: Sources, what: str) -> None:
    taken = take(lab, sources)
    lab.snapshots_sealed()
    hardware: Hardware = taken.hardware
    other = {
        "an older QEMU": hardware.replace(hypervisor="qemu 9.2.1"),
        "another accelerator": hardware.replace(
            acceleration=Acceleration.TCG if hardware.acceleration is Acceleration.KVM else Acceleration.KVM
        ),
        "no QEMU at all": hardware.replace(hypervisor="other 10.0.2"),
    }[what]
    lab.ctx.snapshots.save(lab.ctx.snapshots.load(taken.id).replace(hardware=other))
    qemus = lab.qemus()
    for result in lab.results(taken, 2):
        assert isinstance(result.error, Unsupported)
        assert result.error.code == "other-hypervisor"
        check_clear(result.error, source_state="not touched")
        assert other.hypervisor in result.error.message
        assert result.machine is None
    assert lab.qemus() == qemus
    assert len(lab.ctx.machines.list()) == 1
    sources.check()
