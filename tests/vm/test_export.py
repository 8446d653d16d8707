"""A snapshot of a real machine in another home, which has no image: its clones are new machines there."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.engine import export, importing, snapshot
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.errors import Refused
from liveclone.model.identity import ItemStatus
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import Lab

IDENTITY = "cat /etc/machine-id /etc/hostname /proc/sys/kernel/random/boot_id /etc/ssh/ssh_host_*_key.pub"


@pytest.fixture
def source(lab: Lab) -> Iterator[Machine]:
    """A machine from cold: a clone's lower layers have what its source's scrub has taken out of it."""
    machine = lab.boot("traveller")
    lab.shell(machine, "systemctl is-system-running --wait || :")
    lab.shell(machine, "echo kept > /var/lib/kept; sync; echo ram > /run/ram")
    yield machine
    lab.remove(machine)


def test_clones_start_where_neither_image_nor_source_is(lab: Lab, source: Machine, tmp_path: Path) -> None:
    request = snapshot.Request(machine=source.id, name="clean", scrub=Scrubbing(), wait_sealed=True)
    taken: Snapshot = lab.wait(snapshot.take(lab.ctx, request))
    plain = lab.snapshot(source)
    file = tmp_path / "clean.lcs"
    with pytest.raises(Refused):
        lab.wait(export.export(lab.ctx, plain.id, file))
    lab.remove_snapshot(plain)
    written = lab.wait(export.export(lab.ctx, taken.id, file))
    assert written.size_bytes < written.content_bytes
    listing = subprocess.run(
        ["tar", "--zstd", "-tf", file], check=True, capture_output=True, text=True
    ).stdout
    assert listing.split() == [
        *("index.json", "manifest.json", "key", "state", "kernel", "initrd", "disk.qcow2", "memory")
    ]
    before = lab.shell(source, IDENTITY)

    other = Lab(tmp_path / "home", lab.ctx.layout.hot.with_name(f"other-{secrets.token_hex(4)}"), {})
    try:
        imported = other.wait(importing.import_(other.ctx, file))
        assert imported.key == written.key
        result = other.results(imported.snapshot)[0]
        assert result.error is None and result.machine is not None and result.evidence is not None
        clone = result.machine
        assert result.evidence.verified
        assert not {line for line in other.shell(clone, IDENTITY).splitlines() if line} & set(
            before.splitlines()
        )
        assert other.shell(clone, "cat /var/lib/kept /run/ram") == "kept\nram"
        assert {item.status for item in result.evidence.items if item.item == "machine_id"} == {
            ItemStatus.CHANGED
        }
        # What it starts from cold with came along, and outlives the snapshot.
        other.remove_snapshot(imported.snapshot)
        other.stop(clone, force=True)
        started = other.start(clone)
        assert other.shell(started, "cat /var/lib/kept") == "kept"
        other.remove(started)
        assert list(other.ctx.layout.snapshots.iterdir()) == []
    finally:
        other.close()
    lab.remove_snapshot(taken)
