"""Evidence as a file: made by one command, checked by another, and by other tools as docs/evidence.md has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from liveclone.cli import exits

from .conftest import Ended, Home, invoke

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evidence.md"


@pytest.fixture
def file(town: Home, tmp_path: Path) -> Path:
    path = tmp_path / "clone.json"
    path.write_text(town.run("show", "twin", "--evidence"))
    return path


def change(file: Path, **changes: Any) -> None:
    plain = json.loads(file.read_text())
    plain["subject"]["evidence"].update(changes)
    file.write_text(json.dumps(plain))


def test_a_clones_evidence_holds(town: Home, file: Path) -> None:
    said = town.run("verify", str(file))
    assert "twin: the evidence holds" in said and "the snapshot, web" in said
    found = town.json("verify", str(file))
    assert found["holds"] and found["is_clone"] and found["problems"] == found["findings"] == []
    assert found["subject"]["machine"] == town.machine("twin")["machine"]["id"]
    assert [one["name"] for one in found["compared_with"]] == ["web"]
    assert {"rng", "hostname", "machine_id", "network"} <= set(found["items"])
    assert town.run("verify", "-", "--json", given=file.read_bytes()) == town.run(
        "verify", str(file), "--json"
    )


def test_a_source_has_evidence_too(town: Home, tmp_path: Path) -> None:
    path = tmp_path / "web.json"
    path.write_text(town.run("show", "web", "--evidence"))
    found = town.json("verify", str(path))
    assert found["holds"] and not found["is_clone"] and "rng" in found["items"]


def test_what_was_changed_does_not_hold(town: Home, file: Path) -> None:
    change(file, name="another")
    ended = town.call("verify", str(file))
    assert ended.returncode == exits.NOT_PROVEN
    assert b"the record of another is not what was signed" in ended.stdout
    assert b"does NOT hold" in ended.stdout
    ended = town.call("verify", str(file), "--json")
    assert ended.returncode == exits.NOT_PROVEN
    assert json.loads(ended.stdout)["holds"] is False


def test_it_is_checked_elsewhere_with_the_key_of_the_host_that_made_it(
    town: Home, file: Path, tmp_path: Path
) -> None:
    home = tmp_path / "elsewhere"
    elsewhere = town.environment | {"LIVECLONE_HOME": str(home), "LIVECLONE_HOT": str(tmp_path / "hot")}

    def check(*words: str) -> Ended:
        return invoke(["verify", str(file), *words], environment=elsewhere)

    refused = check()
    assert refused.returncode == 3 and b"no key" in refused.stderr
    key = tmp_path / "host.pub"
    key.write_text(town.run("verify", "--print-key"))
    assert check("--key", str(key)).returncode == 0
    assert not home.exists(), "checking leaves nothing behind"
    own = tmp_path / "own.pub"
    own.write_bytes(invoke(["verify", "--print-key"], environment=elsewhere).stdout)
    assert own.read_text() != key.read_text()
    for words in ((), ("--key", str(own))):
        ended = check(*words)
        assert ended.returncode == exits.NOT_PROVEN
        assert b"signed with another key" in ended.stdout


@pytest.mark.parametrize(
    ("content", "code", "name"),
    [(None, 4, "no-file"), (b"no JSON", 11, "bad-manifest"), (b"{}", 11, "bad-manifest")],
)
def test_a_file_that_is_no_evidence(
    town: Home, tmp_path: Path, content: bytes | None, code: int, name: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert town.fail(code, "verify", str(path))["error"] == name


def test_a_machine_without_evidence(home: Home) -> None:
    home.run("run", "image", "--name", "lone", "--ram", "128M")
    assert home.fail(4, "show", "lone", "--evidence")["error"] == "no-evidence"
    assert home.call("verify").returncode == exits.USAGE
    home.remove_all()


def test_the_commands_of_the_page_check_it(town: Home, file: Path, tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "host.pub").write_text(town.run("verify", "--print-key"))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", commands],
            cwd=tmp_path,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )

    good = run()
    assert (good.returncode, good.stdout.strip()) == (0, "Signature Verified Successfully"), good.stderr
    file.write_text(json.dumps(json.loads(file.read_text())))  # another indentation
    assert run().returncode == 0
    change(file, name="another")
    assert run().returncode != 0
