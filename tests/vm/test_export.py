"""A snapshot of a real machine in another home, which has no image: its clones are new machines there."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import pytest

from liveclone.engine import export, importing, search, snapshot
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.errors import Refused
from liveclone.formats.needles import Secret
from liveclone.model.identity import ItemStatus
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import Lab
from tests.vm.conftest import Story

IDENTITY = "cat /etc/machine-id /etc/hostname /proc/sys/kernel/random/boot_id /etc/ssh/ssh_host_*_key.pub"


def test_clones_start_where_neither_image_nor_source_is(lab: Lab, story: Story, tmp_path: Path) -> None:
    source: Machine = lab.clone(story.snapshot)
    secret = secrets.token_bytes(32)
    # Hidden by a later layer: on the disk below it stays, in what is exported it is not.
    lab.shell(source, f"echo {secret.hex()} > /var/lib/hidden; sync")
    below = lab.snapshot(source)
    lab.shell(source, "dd if=/dev/zero of=/var/lib/hidden bs=64 count=1 conv=notrunc,fsync 2>/dev/null")
    lab.shell(source, "echo kept > /var/lib/kept; sync; echo ram > /run/ram")
    request = snapshot.Request(machine=source.id, name="clean", scrub=Scrubbing(), wait_sealed=True)
    taken: Snapshot = lab.wait(snapshot.take(lab.ctx, request))
    file = tmp_path / "clean.lcs"
    with pytest.raises(Refused):
        lab.wait(export.export(lab.ctx, below.id, file))
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
        needles = [Secret("hidden", secret)]
        hits = lab.wait(search.prove(lab.ctx, taken.id, needles)).found
        assert {hit.part.partition(" ")[0] for hit in hits} == {"disk"}
        assert other.wait(search.prove(other.ctx, imported.snapshot.id, needles)).found == ()
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
    lab.remove(source)
    lab.remove_snapshot(taken)
    lab.remove_snapshot(below)
