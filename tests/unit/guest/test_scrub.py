"""The guest's side of a scrub: what counts as a secret, that it goes without a trace, and that it comes back as it was."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import scrubbed

from .conftest import Host, RecordingKernel, Refusal

HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
FILES = {
    HOST_KEY: "a private key\n",
    HOST_KEY + ".pub": "a public key\n",
    "root/.ssh/authorized_keys": "ssh-ed25519 AAAA me\n",
    "root/.ssh/id_ed25519": "another private key\n",
    "root/.bash_history": "mysql -psecret\n",
    "root/.npmrc": "//registry/:_authToken=abc\n",
    "home/me/.vault-token": "token\n",
    "srv/app/config/token": "t\n",
}
PLAIN = {"root/.ssh/id_ed25519.pub": "public\n", "home/me/.npmrc": "color=false\n", "srv/app/empty": ""}


@pytest.fixture
def home(root: Path) -> Path:
    """Return the root of a guest with secrets, and with files that look like some."""
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")
    for name, text in (FILES | PLAIN).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(host: Host, *paths: str) -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in host.call("scrub_read", paths=list(paths))["files"]}


def remove(host: Host, files: dict[str, dict[str, Any]]) -> None:
    wanted = [
        {"path": path, "digest": hashlib.sha256(base64.b64decode(entry["data"])).hexdigest()}
        for path, entry in files.items()
    ]
    host.call("scrub_remove", files=wanted)


def restore(host: Host, files: dict[str, dict[str, Any]]) -> list[str]:
    kept: list[str] = host.call("scrub_restore", files=list(files.values()))["kept"]
    return kept


def facts(path: Path) -> tuple[Any, ...]:
    found = path.stat()
    return path.read_text(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns


def test_the_well_known_secrets_and_those_that_were_named(host: Host, home: Path) -> None:
    found = read(host, "/srv/app")
    assert sorted(found) == sorted("/" + name for name in FILES)
    assert [path for path, entry in found.items() if entry["history"]] == ["/root/.bash_history"]
    assert base64.b64decode(found["/" + HOST_KEY]["data"]) == b"a private key\n"


def test_what_cannot_be_taken_is_refused_before_anything_is_touched(host: Host, home: Path) -> None:
    for path in ("/srv/nothing", "srv/app"):
        with pytest.raises(Refusal) as caught:
            read(host, path)
        assert caught.value.code == "no-such-file"
    (home / "srv/large").write_bytes(os.urandom(2 * 1024 * 1024 + 1))
    with pytest.raises(Refusal) as caught:
        read(host, "/srv/large")
    assert caught.value.code == "too-much"
    for name, text in FILES.items():
        assert (home / name).read_text() == text


def test_files_go_and_come_back_as_they_were(host: Host, home: Path) -> None:
    (home / HOST_KEY).chmod(0o600)
    os.utime(home / HOST_KEY, ns=(1_000_000_000, 2_000_000_000))
    before = {name: facts(home / name) for name in FILES}
    found = read(host, "/srv/app")
    remove(host, found)
    assert [name for name in FILES if (home / name).exists()] == []
    assert all((home / name).read_text() == text for name, text in PLAIN.items())
    remove(host, found)  # asked again: a lost reply
    assert restore(host, found) == []
    assert {name: facts(home / name) for name in FILES} == before
    assert restore(host, found) == []
    assert {name: facts(home / name) for name in FILES} == before


def test_their_blocks_are_overwritten_before_they_go(
    host: Host, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks just before they are cut off sees zeros; a file with another name keeps its inode."""
    seen = []
    cut_off = os.ftruncate

    def look(fd: int, size: int) -> None:
        seen.append(os.pread(fd, 100, 0).strip(b"\0"))
        cut_off(fd, size)

    monkeypatch.setattr(os, "ftruncate", look)
    other = home / "srv/other-name"
    other.hardlink_to(home / HOST_KEY)
    found = read(host)
    remove(host, found)
    assert set(seen) == {b""}
    assert len(seen) == len(found)
    monkeypatch.undo()
    assert other.read_bytes() == b""
    restore(host, found)
    assert other.read_text() == FILES[HOST_KEY]
    assert other.samefile(home / HOST_KEY)


def test_one_that_was_written_meanwhile_is_left_with_all_others(host: Host, home: Path) -> None:
    found = read(host)
    (home / "root/.bash_history").write_text("one line more\n")
    with pytest.raises(Refusal) as caught:
        remove(host, found)
    assert caught.value.code == "changed"
    assert (home / HOST_KEY).read_text() == FILES[HOST_KEY]


def test_one_that_was_made_anew_is_kept_beside(host: Host, home: Path) -> None:
    found = read(host)
    remove(host, found)
    (home / "root/.bash_history").write_text("the latest\n")
    assert restore(host, found) == ["/root/.bash_history"]
    assert (home / "root/.bash_history").read_text() == FILES["root/.bash_history"]
    assert (home / "root/.bash_history.new").read_text() == "the latest\n"


def test_units_stop_and_start(host: Host, home: Path, kernel: RecordingKernel) -> None:
    kernel.units = {"ssh.service": "active", "app.service": "active", "sshd.service": "inactive"}
    assert host.call("scrub_stop", units=["app.service"])["units"] == ["app.service", "ssh.service"]
    assert set(kernel.units.values()) == {"inactive"}
    assert scrubbed.load(str(home)) == {"units": ["app.service", "ssh.service"], "keys": ["ed25519"]}
    assert host.call("scrub_stop", units=["app.service"])["units"] == ["app.service", "ssh.service"]
    with pytest.raises(Refusal) as caught:
        host.call("scrub_stop", units=["nothing.service"])
    assert caught.value.code == "no-unit"
    host.call("scrub_clean")
    assert ("daemon-reexec",) in kernel.asked
    host.call("scrub_start", units=["other.service"])
    assert (
        kernel.units["app.service"]
        == kernel.units["ssh.service"]
        == kernel.units["other.service"]
        == "active"
    )
    assert scrubbed.load(str(home)) == {"units": [], "keys": []}


def test_the_agent_begins_anew_only_without_commands(host: Host, kernel: RecordingKernel) -> None:
    job = host.call("exec_start", argv=["sleep", "60"])["job"]
    with pytest.raises(Refusal) as caught:
        host.call("renew")
    assert caught.value.code == "busy"
    host.call("exec_close", job=job)
    host.call("renew")
    host.call("ping")
    assert "agent" in kernel.cleaned


def ask_until_free(host: Host, call: str, **args: Any) -> None:
    """Ask as the host does: "busy" means once more."""
    for _ in range(1000):
        reply = host.reply(host.send(call, **args))
        if reply["ok"]:
            return
        assert reply["error"]["code"] == "busy"
    pytest.fail(f"{call} is never taken")


def test_who_wants_them_back_need_not_wait_until_all_is_clean(
    host: Host, connect: Callable[[], Host], home: Path, kernel: RecordingKernel
) -> None:
    found = read(host)
    remove(host, found)
    kernel.has_much_to_clean = True
    cleaning = host.send("scrub_clean")
    assert kernel.cleaning.wait(5)
    other = connect()
    with pytest.raises(Refusal) as caught:
        other.call("scrub_start")
    assert caught.value.code == "busy"
    ask_until_free(other, "scrub_restore", files=list(found.values()))
    assert (home / HOST_KEY).exists()
    with pytest.raises(Refusal) as caught:
        host.answer(cleaning)
    assert caught.value.code == "called-off"
    kernel.has_much_to_clean = False
    host.call("scrub_clean")
    assert kernel.cleaned == ["rest"]


def test_what_cannot_be_cleaned_in_time_is_given_up(host: Host, home: Path, kernel: RecordingKernel) -> None:
    kernel.has_much_to_clean = True
    with pytest.raises(Refusal) as caught:
        host.call("scrub_clean", 0.1)
    assert caught.value.code == "deadline"
    ask_until_free(host, "scrub_start")
    assert kernel.cleaned == []


def test_a_clone_makes_keys_of_the_kinds_there_were_and_starts_what_stood(
    host: Host, home: Path, kernel: RecordingKernel, identity: dict[str, Any]
) -> None:
    kernel.units = {"ssh.service": "active"}
    host.call("scrub_stop")
    remove(host, read(host))
    identified = host.call("identify", **identity)
    (keys,) = [item for item in identified["items"] if item["item"] == "ssh_host_keys"]
    assert keys["status"] == "changed"
    assert (keys["before"], bool(keys["after"])) == ("", True)
    assert (home / HOST_KEY).exists()
    host.call("network", nics=[])
    deadline = time.monotonic() + 10
    while kernel.units["ssh.service"] != "active" and time.monotonic() < deadline:
        host.call("ping")
    assert kernel.units["ssh.service"] == "active"
    assert scrubbed.load(str(home)) == {"units": [], "keys": []}
    assert not (home / "root/.ssh/authorized_keys").exists()
