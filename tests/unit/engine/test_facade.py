"""The synchronous door, as a Python program uses it: every call once, on the fake hypervisor."""

from __future__ import annotations

import pytest

import liveclone
from liveclone.engine.settings import read
from liveclone.errors import NotFound
from liveclone.model.audit import Audit
from liveclone.units import MIB

from .world import World


def test_a_life(world: World, sealing: None) -> None:
    told: list[str] = []
    settings = read(world.environment)
    with liveclone.Host(settings, progress=lambda step, part: told.append(step)) as host:
        web = host.run("image", name="web", ram_bytes=128 * MIB)
        assert host.execute("web", ["echo", "hello"]) == (0, "hello\n", "")
        assert host.scan("web").findings == ()
        warm = host.snapshot("web", name="warm", wait_sealed=True)
        assert host.set_pool("warm", 2).ready == 2
        assert host.drain_pool("warm") == 2
        assert [(one.snapshot, one.size, one.ready) for one in host.pools()] == [("warm", 2, 0)]
        assert host.set_pool("warm", 0).size == 0
        results = host.clone("warm", count=2, names=["one", "two"])
        assert [(result.error, result.machine and result.machine.name) for result in results] == [
            (None, "one"),
            (None, "two"),
        ]
        audited = host.audit("warm")
        assert isinstance(audited, Audit)
        assert (audited.snapshot, audited.equal) == (warm.id, ())
        evidence = host.evidence("two")
        assert evidence.subject.evidence["name"] == "two"
        assert {member.evidence["name"] for member in evidence.members} <= {"web", "one"}
        assert [machine.name for machine in host.machines()] == ["web", "one", "two"]
        assert host.stop("one", force=True).process is None
        assert host.start("one").process is not None
        assert host.repair() == []
        for name in ("one", "two", web.id):
            host.remove(name, force=True)
        assert [snapshot.name for snapshot in host.snapshots()] == ["warm"]
        host.remove_snapshot("warm")
        assert (host.machines(), host.snapshots()) == ([], [])
        with pytest.raises(liveclone.LivecloneError) as missing:
            host.start("web")
        assert isinstance(missing.value, NotFound)
    assert "waiting for web to boot" in told
