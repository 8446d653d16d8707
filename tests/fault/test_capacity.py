"""More clones than the host can carry are refused before anything is started, with the numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from liveclone.host import machine as host
from liveclone.model.snapshot import CaptureMethod
from liveclone.units import MIB
from tests.fault.conftest import Sources
from tests.machines import PATIENCE_S, ROOT, Lab, check_clear

# It reads how much memory the whole host has left.
pytestmark = pytest.mark.alone

FREE = 600 * MIB  # beyond the reserve that is set here: room for a few


def command(lab: Lab, *words: str, free: int = FREE) -> subprocess.CompletedProcess[str]:
    """Run the command on a host whose memory, but for `free` bytes, is reserved for others."""
    reserve = host.memory().available_bytes - free
    environment = {
        "PYTHONPATH": str(ROOT / "src"),
        "LIVECLONE_HOME": str(lab.settings.home),
        "LIVECLONE_HOT": str(lab.settings.hot),
        "LIVECLONE_RESERVE": f"{reserve >> 20}M",
    }
    return subprocess.run(
        [sys.executable, "-m", "liveclone", *words, "--json"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def refused(ended: subprocess.CompletedProcess[str], code: str) -> dict[str, Any]:
    assert ended.returncode == 3, ended
    fields: dict[str, Any] = json.loads(ended.stderr)
    assert fields["error"] == code
    check_clear(fields, source_state="not touched")
    return fields


def look(lab: Lab) -> tuple[object, ...]:
    """Return all that starting a machine would change."""
    folders = sorted(path.name for path in lab.ctx.layout.machines.iterdir())
    macs = (lab.ctx.layout.network / "macs").read_text()
    return lab.qemus(), folders, macs, lab.taps()


def test_fifty_clones(lab: Lab, sources: Sources) -> None:
    taken = lab.snapshot(sources.any(), "few", CaptureMethod.BACKGROUND)
    lab.snapshots_sealed()
    before = look(lab)
    fields = refused(command(lab, "clone", "few", "-n", "50"), "no-memory")
    assert look(lab) == before
    assert "50 clones of few" in fields["message"]
    each, free, kept = (float(found) for found in re.findall(r"([\d.]+) [MG]iB", fields["seen"]))
    assert each > 1 and abs(free - FREE / MIB) < 200 and kept > 1, fields["seen"]
    advice = re.fullmatch(r"ask for at most (\d+), or add --overcommit", fields["next_step"])
    assert advice is not None, fields
    assert 2 <= int(advice[1]) <= 8
    sources.check()
    # The advice is good; a little less, as the host is not ours alone.
    ended = command(lab, "clone", "few", "-n", str(int(advice[1]) - 1))
    assert ended.returncode == 0, ended
    clones = [machine for machine in lab.ctx.machines.list() if machine.clone_of == taken.id]
    assert len(clones) == int(advice[1]) - 1
    for clone in clones:
        assert lab.http(clone)["token"] == sources.token
    lab.remove(*clones)


def test_a_machine_that_is_too_large(lab: Lab, sources: Sources) -> None:
    sources.any()
    before = look(lab)
    fields = refused(command(lab, "run", "light", "--ram", "1G"), "no-memory")
    assert re.search(r"needed, .* free beyond the .* kept", fields["seen"])
    assert look(lab) == before
    sources.check()
