"""The verbs on the fake hypervisor: what they do, print, and with which code they end."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from liveclone.model.snapshot import Snapshot, SnapshotState
from liveclone.store import manifests

from .conftest import Home

LONG = "a" * 300
HOSTILE = ("../x", "..", "/etc/passwd", LONG, "", "a b", "A", "-x", "\x1b[2J", "ü")


def test_list_for_people(town: Home) -> None:
    lines = town.run("list").splitlines()
    assert lines[0].split() == ["NAME", "ID", "STATE", "MADE", "FROM", "ADDRESS", "PORTS", "AGE"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert {"web", "twin"} <= set(rows)
    assert "running" in rows["web"]
    assert "snapshot warm" in rows["twin"]
    assert {"web", "twin"} <= set(town.run("ps", "--quiet").split())


def test_list_for_programs(town: Home) -> None:
    machines = {machine["name"]: machine for machine in town.json("list")}
    web = machines["web"]
    assert web["state"] == "running"
    assert web["image"] == "image"
    assert web["ram_bytes"] == 128 * 1024 * 1024
    assert web["labels"] == {"tier": "front"}
    assert web["address"].startswith("10.213.0.")
    assert machines["twin"]["clone_of"] == "warm"


def test_an_empty_home_has_empty_lists(home: Home) -> None:
    assert home.json("list") == []
    assert home.json("snapshot", "list") == []
    assert home.run("list").startswith("NAME")


def test_show_prints_the_evidence_of_a_clone(town: Home) -> None:
    text = town.run("show", "twin")
    assert text.startswith("machine twin: running, clone of warm\n")
    row = next(line for line in text.splitlines() if line.startswith("hostname"))
    old, new = re.findall(r"\b[0-9a-f]{12}\b", row)
    assert old != new
    assert "changed" in row
    assert re.search(r"^  started +constant$", text, re.MULTILINE)
    assert row.endswith("hostname twin")
    assert re.search(r"^ssh_host_keys .* ed25519 SHA256:", text, re.MULTILINE)
    assert re.search(r"^verified: compared with the snapshot and \d other machines?", text, re.MULTILINE)


def test_show_for_programs(town: Home) -> None:
    twin = town.json("show", "twin")
    assert twin["kind"] == "machine"
    assert twin["verified"] is True
    assert twin["started"] == "constant"
    assert twin["machine"]["id"] == twin["summary"]["id"]
    items = {item["item"]: item for item in twin["evidence"]["items"]}
    assert items["machine_id"]["before"] != items["machine_id"]["after"]
    assert twin["evidence"]["findings"] == []
    warm = town.json("show", "warm")
    assert warm["kind"] == "snapshot"
    assert warm["clones"] == ["twin"]
    assert warm["snapshot"]["capture"]["method"] == "handover"
    assert {member["name"] for member in warm["members"]} == {"web", "twin"}


def test_an_id_and_its_beginning_will_do(town: Home) -> None:
    machine = town.machine("web")["summary"]
    for text in (machine["id"], machine["id"][:6]):
        assert town.machine(text)["summary"]["name"] == "web"


def test_a_source_has_evidence_too(town: Home) -> None:
    web = town.json("show", "web")
    assert web["verified"] is None
    assert web["started"] == ""
    assert web["evidence"]["machine"] == web["summary"]["id"]
    assert "renewed" in town.run("show", "web")


def test_show_of_a_snapshot_for_people(town: Home) -> None:
    for words in (("show", "warm"), ("snapshot", "show", "warm"), ("snapshot", "inspect", "warm")):
        text = town.run(*words)
        assert text.startswith("snapshot warm: ")
        assert re.search(r"^  pause +[\d.]+ .?s$", text, re.MULTILINE)
    assert re.search(r"^twin .* verified", text, re.MULTILINE)


def test_stop_start_and_restart(home: Home) -> None:
    assert re.fullmatch(
        r"image-1 is ready after [\d.]+ m?s: [\d.]+\n", home.run("run", "image", "-m", "128M")
    )
    assert home.run("run", "image", "-m", "128M", "--quiet") == "image-2\n"
    assert home.run("stop", "image-1", "image-2") == "image-1 stopped\nimage-2 stopped\n"
    assert {m["state"] for m in home.json("list")} == {"stopped"}
    assert home.fail(4, "snapshot", "image-1")["error"] == "not-running"
    started = home.json("start", "image-1")
    assert [(m["name"], m["done"], m["error"]) for m in started] == [("image-1", "started", None)]
    before = home.machine("image-1")["machine"]["process"]
    assert home.run("restart", "image-1", "-q") == "image-1\n"
    assert home.machine("image-1")["machine"]["process"] != before
    assert home.run("stop", "--force", "image-1") == "image-1 stopped\n"
    assert home.run("rm", "image-1", "image-2") == "image-1 removed\nimage-2 removed\n"
    home.remove_all()


def test_one_that_fails_does_not_keep_the_others(home: Home) -> None:
    home.run("run", "image", "--name", "a", "-m", "128M")
    ended = home.call("stop", "nobody", "a", "--force", "--json")
    assert ended.returncode == 4
    outcomes = json.loads(ended.stdout)
    assert [(o["name"], o["done"], bool(o["error"])) for o in outcomes] == [
        ("nobody", "", True),
        ("a", "stopped", False),
    ]
    assert json.loads(ended.stderr)["error"] == "no-machine"
    home.remove_all()


def test_a_running_machine_is_removed_only_by_force(town: Home) -> None:
    ended = town.call("remove", "web")
    assert ended.returncode == 3
    assert ended.stderr.decode().splitlines()[0] == "liveclone: web runs"
    assert "--force" in ended.stderr.decode()
    assert ended.stdout == b""


def test_run_with_ports(home: Home) -> None:
    made = home.json("run", "image", "--name", "a", "-m", "128M", "-p", "0:80", "-p", "127.0.0.1:0:443")
    assert made["ready_s"] > 0
    assert [port["guest_port"] for port in made["ports"]] == [80, 443]
    assert all(port["host_port"] for port in made["ports"])
    home.remove_all()


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (4, "no-such-image", ("run", "nothing")),
        (3, "bad-size", ("run", "image", "--ram", "many")),
        (3, "bad-size", ("run", "image", "--ram", "1M")),
        (3, "bad-count", ("run", "image", "--cpus", "0")),
        (3, "bad-port", ("run", "image", "-p", "http")),
        (3, "bad-pair", ("run", "image", "--label", "x")),
        (3, "no-network", ("run", "image", "--network", "none", "-p", "80")),
        (3, "bad-count", ("clone", "warm", "-n", "-1")),
        (3, "bad-count", ("clone", "warm", "-n", "0")),
        (3, "bad-port", ("clone", "warm", "-n", "2", "-p", "8080:80")),
        (3, "name-taken", ("clone", "warm", "--name", "web")),
        (3, "name-taken", ("snapshot", "web", "--name", "warm")),
        (3, "no-handover", ("snapshot", "web", "--method", "handover")),
        (4, "no-snapshot", ("clone", "nothing")),
        (4, "no-snapshot", ("snapshot", "seal", "nothing")),
        (4, "no-such-image", ("image", "show", "nothing")),
        (3, "bad-copy", ("cp", "a", "b")),
        (3, "bad-copy", ("cp", "web:/a", "twin:/b")),
        (4, "no-machine", ("cp", "nobody:/a", "b")),
    ],
)
def test_what_cannot_be_done_is_said(town: Home, code: int, error: str, words: tuple[str, ...]) -> None:
    fields = town.fail(code, *words)
    assert fields["error"] == error
    assert fields["next_step"]


def test_to_clone_a_machine_takes_two_commands(town: Home) -> None:
    fields = town.fail(4, "clone", "web")
    assert fields["message"] == "web is a machine; clones are made of a snapshot"
    assert fields["next_step"] == "liveclone snapshot web --name NAME, then liveclone clone NAME"


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_names_of_things_that_are_to_be_made(town: Home, name: str) -> None:
    before = sorted(town.folder.rglob("*"))
    verbs: list[tuple[str, str]] = [("run", "image"), ("snapshot", "web"), ("clone", "warm")]
    for words in verbs:
        if name or words[0] == "clone":  # elsewhere an empty one asks for a name of our own
            fields = town.fail(3, *words, f"--name={name}")
            assert fields["error"] == "bad-name"
    assert [p for p in sorted(town.folder.rglob("*")) if "locks" not in p.parts] == [
        p for p in before if "locks" not in p.parts
    ]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_names_of_things_that_are_not_there(town: Home, name: str) -> None:
    for words in (("show",), ("stop",), ("snapshot", "create"), ("clone",), ("snapshot", "show"), ("logs",)):
        ended = town.call(*words, "--", name)
        assert ended.returncode == 4, (words, ended)
        assert b"there is no" in ended.stderr
        assert b"\x1b" not in ended.stderr
        assert len(ended.stderr) < 1000
    assert town.call("run", "--", name).returncode in (3, 4)
    assert town.call("image", "remove", "--", name).returncode in (3, 4)


def test_a_name_that_is_nearly_right(town: Home) -> None:
    assert town.fail(4, "snapshot", "wbe")["next_step"] == "did you mean web?"
    assert "did you mean" in town.fail(4, "show", "warmm")["next_step"]


def test_the_short_form_and_the_long_one(home: Home) -> None:
    home.run("run", "image", "--name", "list", "-m", "128M")
    short = home.run("snapshot", "list")
    assert short.startswith("NAME"), "the short form of a machine called `list` is the list"
    assert home.run("snapshot", "create", "list", "--name", "one", "-q") == "one\n"
    home.run("run", "image", "--name", "web", "-m", "128M")
    assert home.json("snapshot", "--name", "two", "web")["name"] == "two"
    taken = home.json("snapshot", "list")
    assert [(s["name"], s["source"]) for s in taken] == [("one", "list"), ("two", "web")]
    home.remove_all()


def test_a_snapshot_is_sealed_when_asked_to_wait(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    assert home.json("snapshot", "web", "--wait-sealed")["state"] == "sealed"
    assert home.run("snapshot", "seal", "web-1") == "web-1 is sealed\n"
    assert home.run("snapshot", "rm", "web-1") == "web-1 removed\n"
    home.remove_all()


def test_a_hook_of_the_source_that_fails_after_a_snapshot_is_a_warning(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    hook = "etc/liveclone/hooks.d/resumed/10-app"
    script = f"mkdir -p {Path(hook).parent}; printf '#!/bin/sh\\necho no cache; exit 3\\n' >{hook}"
    home.run("exec", "web", "sh", "-c", f"{script}; chmod 755 {hook}")
    told = "hook resumed/10-app of web: it ended with 3: no cache"
    ended = home.call("snapshot", "web", "--name", "one")
    assert (ended.returncode, ended.stderr.decode()) == (0, f"liveclone: warning: {told}\n")
    assert ended.stdout.startswith(b"one: web stood still for ")
    assert home.json("snapshot", "web", "--name", "two")["warnings"] == [told]
    assert f"warning         {told}" in home.run("snapshot", "show", "one")
    assert [clone["verified"] for clone in home.json("clone", "one")] == [True]
    home.run("exec", "web", "rm", hook)
    assert home.json("snapshot", "web", "--name", "three")["warnings"] == []
    assert home.machine("web")["summary"]["needs_repair"] is False
    home.remove_all()


def test_clones_for_people_and_programs(town: Home) -> None:
    text = town.run("clone", "warm", "-n", "2", "-p", "0:80", "--overcommit")
    lines = text.splitlines()
    assert lines[0].split() == ["NAME", "READY", "IN", "ADDRESS", "PORTS", "VERIFIED"]
    assert re.fullmatch(
        r"warm-c1 +[\d.]+ s +10\.213\.\S+ +127\.0\.0\.1:\d+->80 +verified \(\d+ items\)", lines[1]
    )
    made = town.json("clone", "warm", "--name", "c", "--name", "d", "--network", "none", "--overcommit")
    assert [one["name"] for one in made] == ["c", "d"]
    for one in made:
        assert one["verified"] is True
        assert one["error"] is None
        assert one["machine"]["nics"] == []
        assert one["steps_ms"]["identify"] > 0
    town.run("rm", "-f", "warm-c1", "warm-c2", "c", "d")


def test_what_is_given_to_clones(town: Home, tmp_path: Path) -> None:
    keys, data = tmp_path / "keys.pub", tmp_path / "data"
    keys.write_text("# ann's\nssh-ed25519 AAAA1 ann\n\nssh-ed25519 AAAA2 bob\n")
    data.write_text("a: 1\n")
    words = ("--hostname", "one.example", "--hostname", "two", "--address", "10.213.9.1", "--overcommit")
    made = town.json(
        "clone", "warm", *words, "--ssh-key", str(keys), "--user-data", str(data), "--metadata", "a=b=c"
    )
    assert [one["machine"]["nics"][0]["address"] == "10.213.9.1/16" for one in made] == [True, False]
    names = [one["name"] for one in made]
    for name, hostname in zip(names, ("one.example", "two"), strict=True):
        shown = town.spawn("exec", name, "cat", "etc/hostname", "root/.ssh/authorized_keys").stdout.decode()
        assert shown.splitlines()[0] == hostname
        assert shown.splitlines()[-2:] == ["ssh-ed25519 AAAA1 ann", "ssh-ed25519 AAAA2 bob"]
        told = town.spawn("exec", name, "cat", "var/lib/liveclone/metadata.json").stdout.decode()
        assert json.loads(told) == {"a": "b=c"}
    town.run("rm", "-f", *names)
    assert town.fail(4, "clone", "warm", "--ssh-key", str(tmp_path / "none"))["error"] == "no-such-file"
    data.write_bytes(b"\xff")
    assert town.fail(3, "clone", "warm", "--user-data", str(data))["error"] == "bad-parameter"
    assert town.fail(3, "clone", "warm", "-n", "1", *words)["error"] == "bad-parameter"


def test_a_clone_that_is_not_verified(town: Home) -> None:
    town.environment["LIVECLONE_FAKE_FAULT"] = "bad:keep:hostname"
    try:
        words = ("clone", "warm", "--name", "good", "--name", "bad", "--overcommit", "--keep-failed")
        ended = town.call(*words)
    finally:
        del town.environment["LIVECLONE_FAKE_FAULT"]
    assert ended.returncode == 9
    rows = {line.split()[0]: line for line in ended.stdout.decode().splitlines()}
    assert "verified (" in rows["good"]
    assert rows["bad"].split()[1:] == ["failed", "not-verified"]
    assert b"bad is not verified as a machine of its own: hostname" in ended.stderr
    assert b"Traceback" not in ended.stderr
    kept = town.json("show", "bad")
    assert kept["summary"]["quarantined"] is True
    assert kept["verified"] is False
    text = town.run("show", "bad")
    assert text.startswith("machine bad: quarantined")
    assert "NOT verified" in text
    assert "hostname: it still has the snapshot's value" in text
    town.run("rm", "-f", "good", "bad")


def test_debug_adds_the_traceback(town: Home) -> None:
    for words in (("--debug", "clone", "nothing"), ("clone", "--debug", "nothing")):
        ended = town.call(*words)
        assert ended.returncode == 4
        assert b"Traceback (most recent call last)" in ended.stderr


def test_a_setting_without_meaning(town: Home) -> None:
    ended = town.call("list", LIVECLONE_NETWORK="carrier-pigeon")
    assert ended.returncode == 3
    assert b"LIVECLONE_NETWORK='carrier-pigeon' has no meaning" in ended.stderr


def test_a_home_that_cannot_be_written(tmp_path: Path, town: Home) -> None:
    (tmp_path / "file").touch()
    ended = town.call("list", "--json", LIVECLONE_HOME=str(tmp_path / "file" / "home"))
    assert ended.returncode == 10
    fields = json.loads(ended.stderr)
    assert fields["kind"] == "StoreError"
    assert fields["on"].startswith(str(tmp_path / "file"))
    assert "LIVECLONE_HOME" in fields["next_step"]


def test_images(home: Home) -> None:
    home.add_image("other")
    assert [image["name"] for image in home.json("image", "list")] == ["image", "other"]
    assert home.json("image", "show", "other")["has_agent"] is True
    assert home.run("image", "show", "other").startswith("image other: imported\n")
    home.run("run", "image", "--name", "web", "-m", "128M")
    assert home.fail(5, "image", "build", "image")["error"] == "image-exists"
    assert home.fail(5, "image", "build", "image", "--fresh")["error"] == "image-in-use"
    ended = home.call("image", "remove", "image", "other")
    assert ended.returncode == 5
    assert ended.stdout == b"other removed\n"
    assert b"web" in ended.stderr
    home.remove_all()
    assert home.json("image", "rm", "image") == [{"name": "image", "done": "removed", "error": None}]


def test_a_disk_that_cannot_be_imported(home: Home, tmp_path: Path) -> None:
    assert home.fail(4, "image", "import", str(tmp_path / "nothing.qcow2"))["error"] == "no-such-file"
    (tmp_path / "x.iso").write_bytes(b"PK\x03\x04" * 1000)
    assert home.fail(3, "image", "import", str(tmp_path / "x.iso"), "--name", "x")["message"]


@pytest.mark.parametrize(
    "words",
    [
        ("--suite", "../x"),
        ("--size", "1M"),
        ("--copy", "/etc/hosts:../x"),
        ("--package", "a b"),
        ("--", "../x"),
    ],
)
def test_an_image_that_cannot_be_asked_for(home: Home, words: tuple[str, ...]) -> None:
    ended = home.call("image", "build", "--json", *words)
    assert ended.returncode == 3, ended
    assert json.loads(ended.stderr)["next_step"]


def test_doctor(home: Home) -> None:
    ended = home.call("doctor", "--json")
    report = json.loads(ended.stdout)
    assert ended.returncode == (0 if report["usable"] else 12)
    names = {finding["name"] for finding in report["findings"]}
    assert {"acceleration", "memory", "hot-folder", "home-folder"} <= names
    text = home.call("doctor").stdout.decode()
    assert all(re.search(rf"^{name} +(ok|warning|problem) ", text, re.MULTILINE) for name in names)
    assert str(home.folder) in text
    assert "network namespace of this home: liveclone-" in text


def test_repair_with_nothing_to_repair(town: Home) -> None:
    town.run("snapshot", "seal", "warm")
    assert town.run("repair") == "nothing to repair\n"
    assert town.json("repair", "web") == {"settled": [], "sealing": []}


def test_what_a_killed_command_has_left_is_seen_and_repaired(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    killed = home.spawn("snapshot", "web", LIVECLONE_FAULT="snapshot.committed=kill", fresh=True)
    assert killed.returncode == -signal.SIGKILL
    ended = home.call("list")
    assert b"running (interrupted snapshot)" in ended.stdout
    assert b"liveclone repair" in ended.stderr
    assert home.machine("web")["summary"]["needs_repair"] is True
    assert home.run("repair") == "web: an interrupted operation was settled\n"
    assert home.machine("web")["summary"]["needs_repair"] is False
    home.remove_all()


def test_a_snapshot_whose_sealing_died_is_sealed_by_repair(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.run("snapshot", "web", "--wait-sealed")
    path = next((home.folder / "snapshots").glob("*/manifest.json"))
    sealed = manifests.parse(path.read_bytes(), Snapshot, str(path))
    path.write_bytes(manifests.render(sealed.replace(state=SnapshotState.READY)))
    assert home.run("repair") == "web-1: is being sealed in the background\n"
    home.run("snapshot", "seal", "web-1")
    home.remove_all()


def test_a_scan_tells_what_is_not_safe_to_copy(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    assert home.run("scan", "web") == "web: nothing found; the policy default would take a snapshot\n"
    home.run("exec", "web", "--", "sh", "-c", "echo key > etc/krb5.keytab")
    ended = home.call("scan", "web")
    assert ended.returncode == 3
    text = ended.stdout.decode()
    assert "/etc/krb5.keytab" in text
    assert text.endswith("web: 1 refuse; the policy default would refuse a snapshot\n")
    scanned = home.json("scan", "web", "--policy", "open")
    assert [(one["action"], one["finding"]["check"]) for one in scanned["verdicts"]] == [
        ("warn", "enrolments")
    ]
    assert home.call("scan", "web", "-q").stdout == b"refuse enrolments /etc/krb5.keytab\n"
    assert home.fail(4, "scan", "web", "--policy", "loose")["error"] == "no-policy"
    assert home.fail(3, "snapshot", "web")["error"] == "unsafe"
    ended = home.call("snapshot", "web", "--name", "warm", "--policy", "open")
    assert b"not safe to copy unthinkingly: 1 thing in web; liveclone snapshot show warm" in ended.stderr
    assert "/etc/krb5.keytab" in home.run("snapshot", "show", "warm")
    assert home.json("snapshot", "list")[0]["unsafe"] == 1
    home.remove_all()


def test_an_audit_tells_whether_all_are_distinct(town: Home) -> None:
    audited = town.json("audit", "warm")
    names = [member["name"] for member in audited["members"]]
    assert (names, audited["pairs"], audited["equal"]) == (["snapshot warm", "web", "twin"], 2, [])
    text = town.run("audit", "warm")
    assert text.startswith("values in common:\n")
    assert text.endswith("warm: 3 members, 2 pairs: all distinct\n")


def test_an_audit_that_finds_something_fails(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.run("snapshot", "web", "--name", "warm")
    home.run("clone", "warm", "-n", "2")
    twins = ("warm-c1", "warm-c2")
    for name in twins:
        home.run("exec", name, "--", "sh", "-c", f"echo {'0' * 31}2 > etc/machine-id")
    ended = home.call("audit", "warm")
    assert ended.returncode == 9
    text = ended.stdout.decode()
    assert "machine_id: warm-c1 has the same as warm-c2\n" in text
    assert text.endswith("warm: 4 members, 5 pairs: 1 EQUAL\n")
    ended = home.call("audit", "warm", "--json")
    assert ended.returncode == 9
    (equal,) = json.loads(ended.stdout)["equal"]
    assert equal == {"what": "machine_id", "first": twins[0], "second": twins[1]}
    assert home.call("audit", "warm", "-q").stdout == b"machine_id: warm-c1 = warm-c2\n"
    home.remove_all()


def test_a_snapshot_is_searched_for_secrets(home: Home, tmp_path: Path) -> None:
    secret = "gho_16C7e42F292c6912E7710c838347Ae178B4a"
    home.run("run", "image", "--name", "web", "-m", "128M")
    (needles := tmp_path / "needles").write_text(f"{secret}\nshort\n")
    home.run("exec", "web", "--", "sh", "-c", f"echo {secret} > etc/token")
    home.run("snapshot", "web", "--name", "warm")
    ended = home.call("prove", "warm", "--needles", str(needles))
    assert ended.returncode == 9
    lines = ended.stdout.decode().splitlines()
    assert lines[1].split()[:3] == ["line", "1", "memory"]
    assert lines[-1].startswith("2 secrets, 1 found (")
    assert "line 2 was not searched for: it is too short, or too regular" in lines
    assert secret not in ended.stdout.decode()
    needles.write_text("hex:" + bytes(range(80, 112)).hex())
    assert home.run("prove", "warm", "--needles", str(needles)).startswith("1 secret, 0 found (")
    proof = home.json("prove", "warm", "--needles", str(needles))
    assert proof["found"] == []
    assert {"memory", "device state", "disk image", "disk image, file"} <= set(proof["searched_bytes"])
    assert home.fail(4, "prove", "warm", "--needles", "/nowhere")["error"] == "no-such-file"
    needles.write_text("hex:zz")
    assert home.fail(3, "prove", "warm", "--needles", str(needles))["error"] == "bad-needles"
    home.remove_all()


def test_a_scrubbed_snapshot_shows_its_proof(home: Home) -> None:
    secret = "gho_16C7e42F292c6912E7710c838347Ae178B4a"
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.run("exec", "web", "--", "sh", "-c", f"echo {secret} > etc/token")
    text = home.run("snapshot", "web", "--scrub", "--scrub-path", "/etc/token")
    assert re.search(r"^3 secrets, 0 found \(.* searched in .*\)$", text, re.MULTILINE)
    home.run("exec", "web", "--", "grep", "-q", secret, "etc/token")
    assert re.search(r"^  scrubbed +3 secrets, 0 found", home.run("show", "web-1"), re.MULTILINE)
    assert home.json("snapshot", "show", "web-1")["snapshot"]["scrub"]["found"] == []
    assert home.fail(3, "snapshot", "web", "--scrub-path", "/etc/token")["error"] == "no-scrub"
    assert home.fail(9, "snapshot", "web", "--scrub", "--scrub-unit", "x.service")["error"] == "agent-no-unit"
    home.remove_all()


def test_ctrl_c_undoes_and_says_so(home: Home, tmp_path: Path) -> None:
    """A run that waits for a guest that never answers; the machine that it was making goes."""
    home.environment["LIVECLONE_FAKE_FAULT"] = "web:mute:agent"
    command = home.start("run", "image", "--name", "web", "-m", "128M", fresh=True)
    assert command.stderr
    assert b"waiting for web to boot" in command.stderr.readline(), "progress, after the first second"
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert out == b""
    assert err.splitlines()[-1] == b"liveclone: ended by SIGINT; what was begun has been undone"
    del home.environment["LIVECLONE_FAKE_FAULT"]
    assert home.json("list") == []
    home.remove_all()


def test_ctrl_c_while_it_waits_for_the_seal_leaves_the_snapshot_and_says_so(
    home: Home, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.environment["LIVECLONE_FAULT"] = f"seal.begun=wait:{gate}"
    command = home.start("snapshot", "web", "--wait-sealed")
    del home.environment["LIVECLONE_FAULT"]
    assert command.stderr
    for line in command.stderr:
        if b"sealing" in line:  # progress, after the first second
            break
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 130
    stands = b"snapshot web-1 stands, and goes on being sealed in the background"
    assert err.splitlines()[-1] == b"liveclone: ended by SIGINT; " + stands
    assert [one["state"] for one in home.json("snapshot", "list")] == ["ready"]
    gate.write_bytes(b"")  # whoever seals goes on
    home.run("snapshot", "seal", "web-1")
    home.remove_all()


def test_progress_on_a_terminal_is_a_line_that_changes(home: Home) -> None:
    home.environment["LIVECLONE_FAKE_FAULT"] = "web:mute:agent"
    terminal = home.terminal("run", "image", "--name", "web", "-m", "128M", fresh=True)
    terminal.expect(rb"waiting for web to boot")
    terminal.type(b"\x03")
    terminal.expect(rb"ended by SIGINT; what was begun has been undone\r\n")
    assert terminal.end() == 130
    del home.environment["LIVECLONE_FAKE_FAULT"]
    home.remove_all()


def test_a_quiet_run_says_nothing(home: Home) -> None:
    home.environment["LIVECLONE_FAKE_FAULT"] = "web:mute:agent"
    command = home.start("run", "image", "--name", "web", "-m", "128M", "--quiet")
    wait_for_machine(home)
    command.send_signal(signal.SIGTERM)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 143
    assert [line for line in err.splitlines() if b"waiting" in line] == []
    del home.environment["LIVECLONE_FAKE_FAULT"]
    home.remove_all()


def wait_for_machine(home: Home) -> dict[str, Any]:
    """Ask until there is a machine that has a process."""
    while True:
        for machine in home.json("list"):
            detail = home.json("show", machine["id"])
            if detail["machine"]["process"]:
                return machine  # type: ignore[no-any-return]


def test_a_machine_that_is_being_made_is_seen_as_such(home: Home) -> None:
    home.environment["LIVECLONE_FAKE_FAULT"] = "web:mute:agent"
    command = home.start("run", "image", "--name", "web", "-m", "128M")
    machine = wait_for_machine(home)
    assert (machine["state"], machine["busy"], machine["needs_repair"]) == ("starting", "run", False)
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=30)
    del home.environment["LIVECLONE_FAKE_FAULT"]
    home.remove_all()


def test_output_that_nobody_reads_any_more(town: Home) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = town.start("list", stdout=write_end, fresh=True)
    os.close(write_end)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 141
    assert err == b""


def test_logs(town: Home) -> None:
    folder = town.folder / "machines" / town.machine("web")["summary"]["id"]
    (folder / "console.log").write_bytes(b"one\ntwo\nthree\n")
    assert town.spawn("logs", "web").stdout == b"one\ntwo\nthree\n"
    assert town.spawn("logs", "web", "-n", "2").stdout == b"two\nthree\n"
    assert town.spawn("logs", "web", "-n", "0").stdout == b""
    assert town.spawn("logs", "--qemu", "web").stdout == (folder / "qemu.log").read_bytes()
    assert town.spawn("logs", "twin").stdout == b"", "a console that has said nothing"


def test_logs_follow_until_the_machine_stops(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    log = home.folder / "machines" / home.machine("web")["summary"]["id"] / "console.log"
    log.write_bytes(b"one\n")
    command = home.start("logs", "-f", "web")
    assert command.stdout
    assert command.stdout.readline() == b"one\n"
    with log.open("ab", buffering=0) as file:
        file.write(b"two\n")
        assert command.stdout.readline() == b"two\n"
        home.run("snapshot", "web", "-q")  # a handover: another process, the same machine
        file.write(b"three\n")
        assert command.stdout.readline() == b"three\n"
        file.write(b"last words\n")
    home.run("stop", "--force", "web")
    out, err = command.communicate(timeout=30)
    assert (out, err, command.returncode) == (b"last words\n", b"", 0)
    home.remove_all()


def test_completion_knows_the_names(town: Home) -> None:
    def complete(*words: str, fresh: bool = False) -> list[str]:
        ended = town.spawn(
            _LIVECLONE_COMPLETE="complete_bash",
            COMP_WORDS="\n".join(["liveclone", *words]),  # as bash's function does
            COMP_CWORD=str(len(words)),
            fresh=fresh,
        )
        assert ended.stderr == b""
        return ended.stdout.decode().split()

    assert complete("show", "w", fresh=True) == ["web", "warm"]
    assert complete("stop", "t") == ["twin"]
    assert complete("clone", "wa") == ["warm"]
    assert complete("run", "im") == ["image"]
    assert complete("snapshot", "we") == ["web"]
    assert "list" in complete("snapshot", "l")
    assert complete("cp", "we") == ["web:"]
    assert "--wait-sealed" in complete("snapshot", "create", "--w")
    assert complete("show", "nobody") == []
    assert complete("--dr") == ["--driver"]
    assert complete("--con") == ["--connect"]
    assert complete("--driver", "") == ["qemu", "libvirt"]
    assert complete("--driver", "=", "l") == ["libvirt"]
    assert complete("--driver", "libvirt", "sto") == ["stop"]
    assert complete("--driver", "=", "libvirt", "stop", "t") == ["twin"]
    assert complete("--connect", "q") == ["qemu:///system", "qemu:///session"]
    assert complete("--connect", "qemu", ":", "///system", "--driver", "libvirt", "stop", "t") == ["twin"]
    assert complete("--connect", "=", "qemu", ":", "///system?socket", "=", "/run/x", "stop", "t") == ["twin"]


def test_a_snapshot_travels_as_a_file(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "warm.lcs"
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.run("snapshot", "web", "--name", "warm", "--wait-sealed")
    assert home.fail(3, "snapshot", "export", "warm", str(file))["error"] == "not-proven"
    assert not file.exists()
    ended = home.call("snapshot", "export", "warm", str(file), "--i-know")
    assert ended.returncode == 0
    assert f"warm is in {file}: " in ended.stdout.decode()
    assert b"not proven: snapshot warm may hold secrets of web: it was taken without --scrub" in ended.stderr
    assert home.fail(3, "snapshot", "export", "warm", str(file), "--i-know")["error"] == "file-exists"
    written = home.json("snapshot", "export", "warm", str(tmp_path / "again.lcs"), "--i-know")
    assert written["snapshot"] == "warm"
    assert written["size_bytes"] == (tmp_path / "again.lcs").stat().st_size
    assert written["unproven"]

    assert home.fail(3, "snapshot", "import", str(file))["error"] == "name-taken"
    assert home.fail(4, "snapshot", "import", str(tmp_path / "none"))["error"] == "no-such-file"
    told = home.run("snapshot", "import", str(file), "--name", "other")
    assert told == "other is imported; it was exported by this host\n"
    imported = home.json("snapshot", "import", str(file), "--name", "third")
    assert imported["snapshot"]["name"] == "third"
    assert imported["snapshot"]["state"] == "sealed"
    assert (imported["key"], imported["own_key"]) == (written["key"], True)
    assert home.run("clone", "other", "--quiet").strip()
    file.write_bytes(b"anything")
    assert home.fail(11, "snapshot", "import", str(file), "--name", "fourth")["error"] == "bad-export"
    home.remove_all()
