"""Units that a clone restarts, with a `systemctl` of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import process

from .conftest import Host, Refusal


@pytest.fixture
def listed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """List two units in a guest that has a generation; return what systemctl writes down."""
    folder, log = tmp_path / "bin", tmp_path / "asked"
    folder.mkdir()
    command = folder / "systemctl"
    command.write_text(f'#!/bin/sh\necho "$*" >> {log}\n. {tmp_path}/behaviour\n')
    command.chmod(0o755)
    (tmp_path / "behaviour").write_text("exit 0\n")
    monkeypatch.setattr(process, "PATH", f"{folder}:/usr/bin:/bin")
    (root / "etc/liveclone").mkdir(exist_ok=True)
    (root / "etc/liveclone/restart").write_text("# ours\nnginx.service\n\n  cache.service # of pages\n")
    (root / "run/liveclone").mkdir()
    (root / "run/liveclone/generation").write_text(json.dumps({"counter": 0, "uuid": "of the source"}))
    return log


def errors_of(result: dict[str, Any]) -> dict[str, str]:
    return {report["unit"]: report["error"] for report in result["restarts"]}


def test_all_are_restarted_by_one_command(host: Host, listed: Path, identity: dict[str, Any]) -> None:
    assert errors_of(host.call("identify", **identity)) == {"nginx.service": "", "cache.service": ""}
    assert listed.read_text() == "try-restart -- nginx.service cache.service\n"


def test_a_source_and_a_machine_that_has_just_booted_restart_nothing(
    host: Host, listed: Path, root: Path, identity: dict[str, Any]
) -> None:
    assert host.call("resume", **identity)["restarts"] == []
    (root / "run/liveclone/generation").unlink()
    assert host.call("identify", **identity)["restarts"] == []
    assert not listed.exists()


def test_a_clone_of_a_machine_that_others_booted_restarts_them(
    host: Host, listed: Path, root: Path, identity: dict[str, Any]
) -> None:
    given = root / "run/liveclone/generation"
    given.unlink()
    host.call("prepare", key=identity["key"], snapshot="s")
    own = json.loads(given.read_text())
    assert (own["counter"], len(own["uuid"])) == (0, 36)
    host.call("prepare", key=identity["key"], snapshot="s")
    assert json.loads(given.read_text()) == own
    assert errors_of(host.call("identify", **identity)) == {"nginx.service": "", "cache.service": ""}


@pytest.mark.parametrize(
    ("says", "blamed"),
    [
        ("Job for cache.service failed because of a timeout.", {"cache.service"}),
        ("Failed to connect to bus", {"nginx.service", "cache.service"}),
    ],
)
def test_a_failure_names_the_unit(
    host: Host, listed: Path, tmp_path: Path, identity: dict[str, Any], says: str, blamed: set[str]
) -> None:
    (tmp_path / "behaviour").write_text(f"echo '{says}' >&2; exit 1\n")
    errors = errors_of(host.call("identify", **identity))
    assert {unit for unit, error in errors.items() if error} == blamed
    assert all(errors[unit] == f"systemctl ended with 1: {says}" for unit in blamed)


def test_a_restart_that_hangs_meets_the_deadline(
    host: Host, listed: Path, tmp_path: Path, identity: dict[str, Any]
) -> None:
    (tmp_path / "behaviour").write_text("sleep 60\n")
    with pytest.raises(Refusal) as caught:
        host.call("identify", deadline_s=0.3, **identity)
    assert caught.value.code == "deadline"
    assert caught.value.error["running"] == ["restart of nginx.service, cache.service"]


def test_without_systemctl_each_unit_fails(
    host: Host, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: dict[str, Any]
) -> None:
    monkeypatch.setattr(process, "PATH", str(tmp_path / "nothing"))
    errors = errors_of(host.call("identify", **identity))
    assert all("systemctl" in error for error in errors.values()) and len(errors) == 2
