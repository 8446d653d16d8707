"""The demo as a newcomer starts it: one command, one JSON object, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.conftest import ROOT, Needs

PREFIX = "liveclone-demo-"  # of its folders
OWN = ("hostname", "machine_id", "host_key", "mac", "random")


def find_folders() -> set[Path]:
    return {path for place in (tempfile.gettempdir(), "/dev/shm") for path in Path(place).glob(f"{PREFIX}*")}


def test_the_demo_shows_four_machines_of_their_own(needs: Needs, cache_folder: Path) -> None:
    needs("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", root=True)
    before = find_folders()
    told = {name: value for name, value in os.environ.items() if not name.startswith("LIVECLONE_")}
    result = subprocess.run(
        [ROOT / "dev", "demo", "--json"],
        stdout=subprocess.PIPE,
        env=told | {"LIVECLONE_DEV_CACHE": str(cache_folder)},
        check=False,
    )
    assert result.returncode == 0, result.stdout.decode()
    outcome = json.loads(result.stdout)
    assert outcome["left_behind"] == []
    assert find_folders() == before
    assert outcome["connection_kept"]
    assert 0 < outcome["pause_ms"] <= outcome["client_gap_ms"]
    members = [outcome["source"], *outcome["clones"]]
    assert len(members) == 5
    assert len({member["name"] for member in members}) == 5
    assert all(member["ready_s"] > 0 for member in members)
    # Warm: what the source had computed and drawn is there in each clone.
    assert len({(member["token"], member["index"]) for member in members}) == 1
    for key in OWN:
        assert len({member[key] for member in members}) == 5, key
    ready = sorted(clone["ready_s"] for clone in outcome["clones"])
    assert outcome["speedup"] > 0
    assert abs(outcome["speedup"] - outcome["cold_boot_s"] / ((ready[1] + ready[2]) / 2)) < 0.2
