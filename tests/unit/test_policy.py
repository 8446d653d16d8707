"""Policies: what each finding does to a snapshot, and which files are no policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone.errors import NotFound, Refused
from liveclone.identity import policy
from liveclone.model.scan import FailedCheck, Remedy, ScanFinding

ALL = '[remedies]\nhook = "allow"\nrestart = "warn"\naccept = "warn"\nrefuse = "refuse"\n'


def finding(check: str, remedy: Remedy) -> ScanFinding:
    return ScanFinding(check=check, subject="x", seen="y", remedy=remedy, advice="z")


def judged(text: str, *findings: ScanFinding) -> list[str]:
    failed = (FailedCheck(check="mounts", error="OSError"),)
    return [verdict.action.value for verdict in policy.load(text).judge(findings, failed)]


@pytest.mark.parametrize(
    ("name", "hook", "restart", "accept", "refuse", "failed"),
    [
        ("open", "allow", "allow", "allow", "warn", "warn"),
        ("default", "allow", "warn", "warn", "refuse", "warn"),
        ("strict", "allow", "refuse", "refuse", "refuse", "refuse"),
    ],
)
def test_what_is_shipped(name: str, hook: str, restart: str, accept: str, refuse: str, failed: str) -> None:
    findings = [finding("generators", remedy) for remedy in Remedy]
    assert judged(name, *findings) == [hook, restart, accept, refuse, failed]
    assert name in policy.names()


def test_a_check_can_be_judged_whatever_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('failed = "refuse"\n' + ALL + '[checks]\nmounts = "allow"\n')
    found = judged(str(file), finding("mounts", Remedy.REFUSE), finding("jobs", Remedy.REFUSE))
    assert found == ["allow", "refuse", "refuse"]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "failed"),
        ('failed = "warn"\n', "remedies"),
        ('failed = "perhaps"\n' + ALL, "perhaps"),
        ('failed = "warn"\n' + ALL.replace("hook", "hok"), "hok"),
        ('failed = "warn"\n' + ALL.replace('hook = "allow"\n', ""), "hook"),
        ('failed = "warn"\nother = 1\n' + ALL, "other"),
        ('failed = "warn"\n' + ALL + '[checks]\nmounts = "never"\n', "never"),
        ("failed = ", "Invalid value"),
        ("\udcff", "decode"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text: str, seen: str) -> None:
    file = tmp_path / "ours.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Refused) as refused:
        policy.load(str(file))
    assert refused.value.code == "bad-policy"
    assert seen in refused.value.seen
    assert refused.value.on == str(file)


@pytest.mark.parametrize("name", ["", "loose", "../x", "/no/such/file", "x" * 300, "/"])
def test_a_policy_that_does_not_exist(name: str) -> None:
    with pytest.raises(NotFound) as missing:
        policy.load(name)
    assert missing.value.code == "no-policy"
    assert "strict" in missing.value.next_step
