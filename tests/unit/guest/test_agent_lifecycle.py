"""observe, prepare, identify, resume as the host calls them."""

from __future__ import annotations

import hmac
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from liveclone.guest import lifecycle, priority
from liveclone.guest.context import Context
from liveclone.guest.errors import CannotChange
from liveclone.guest.items import Item, load_items
from liveclone.guest.main import Agent
from liveclone.model import base
from liveclone.model.identity import ItemReport

from .conftest import KEY, Host, RecordingKernel, Refusal

Hook = Callable[[str, str, str], Path]


def by_item(reports: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {report["item"]: report for report in reports}


def test_reports_are_the_hosts_own_kind(host: Host, identity: dict[str, Any]) -> None:
    found = host.call("observe", key=KEY)["items"], host.call("identify", **identity)["items"]
    for reports in found:
        values = base.decode(json.dumps(reports).encode(), list[ItemReport], "reports")
        assert [value.item for value in values] == [
            item.name for item in load_items() if item.name != "network" or reports is found[0]
        ]


def test_observe_changes_nothing(host: Host, root: Path, kernel: RecordingKernel) -> None:
    reports = by_item(host.call("observe", key=KEY)["items"])
    assert reports["hostname"]["status"] == "present"
    assert (
        reports["hostname"]["before"] == hmac.digest(bytes.fromhex(KEY), b"hostname\0source", "sha256").hex()
    )
    assert reports["hostname"]["details"] == {"hostname": "source"}
    assert reports["network"]["status"] == reports["ssh_host_keys"]["status"] == "absent"
    assert reports["machine_id"]["required"]
    assert not reports["network"]["required"]
    assert kernel.seeds == []
    assert (root / "etc/machine-id").read_text() == "0123456789abcdef0123456789abcdef\n"


def test_observe_some(host: Host) -> None:
    assert [r["item"] for r in host.call("observe", key=KEY, items=["clock", "rng"])["items"]] == [
        "rng",
        "clock",
    ]
    with pytest.raises(Refusal) as caught:
        host.call("observe", key=KEY, items=["rng", "nonsense"])
    assert caught.value.code == "unknown-item"


def test_identify_makes_another_machine(
    host: Host, root: Path, kernel: RecordingKernel, identity: dict[str, Any]
) -> None:
    old = by_item(host.call("prepare", key=KEY, snapshot="s1")["items"])
    result = host.call("identify", **identity)
    new = by_item(result["items"])
    assert {name: report["status"] for name, report in new.items()} == {
        "rng": "changed",
        "hostname": "changed",
        "machine_id": "changed",
        "boot_id": "absent",
        "clock": "configured",
        "connections": "configured",
        "journal": "absent",
        "login_sessions": "configured",
        "dmi_uuid": "absent",
        "hibernation": "absent",
        "swap": "absent",
        "vsock_cid": "absent",
        "cloud_init": "absent",
        "conntrack": "absent",
        "dhcp": "absent",
        "interface_names": "absent",
        "ipv6_secrets": "absent",
        "network_programs": "configured",
        "random_seed": "absent",
        "ssh_host_keys": "absent",
    }
    for name in ("hostname", "machine_id"):
        assert new[name]["before"] == old[name]["before"] != new[name]["after"] != ""
    assert result["generation"] == identity["generation"] == host.call("ping")["generation"]
    assert json.loads((root / "run/liveclone/generation").read_text()) == identity["generation"]
    assert kernel.name == "clone-1"
    assert result["took_ms"] > 0


def test_the_random_state_is_new_before_anything_is_made(
    agent: Agent, host: Host, kernel: RecordingKernel, root: Path, identity: dict[str, Any]
) -> None:
    seen = []

    class Watch(Item):
        name: ClassVar[str] = "watch"
        order: ClassVar[int] = 1

        def observe(self, ctx: Context) -> tuple[bytes | None, dict[str, str]]:
            seen.append((len(kernel.seeds), (root / "run/liveclone/generation").exists()))
            return b"x", {}

        def reset(self, ctx: Context) -> dict[str, str]:
            return {}

    agent.lifecycle.items.append(Watch())
    host.call("identify", **identity)
    assert set(seen) == {(1, True)}


def test_identify_asked_again_changes_nothing(
    host: Host, root: Path, kernel: RecordingKernel, identity: dict[str, Any]
) -> None:
    first = host.call("identify", **identity)
    text = (root / "etc/machine-id").read_text()
    assert host.call("identify", **identity) == first
    assert (root / "etc/machine-id").read_text() == text
    assert len(kernel.seeds) == 1
    again = {**identity, "generation": {"counter": 2, "uuid": "another"}}
    assert host.call("identify", **again)["generation"]["counter"] == 2
    assert (root / "etc/machine-id").read_text() != text


class Patient(Item):
    """Has something left to do when all is over."""

    name: ClassVar[str] = "patient"

    def __init__(self) -> None:
        self.done = threading.Event()

    def observe(self, ctx: Context) -> tuple[bytes | None, dict[str, str]]:
        return b"x", {}

    def reset(self, ctx: Context) -> dict[str, str]:
        ctx.later.append(self.done.set)
        return {}


def test_what_takes_time_waits_for_the_network(agent: Agent, host: Host, identity: dict[str, Any]) -> None:
    patient = Patient()
    agent.lifecycle.items.append(patient)
    host.call("identify", **identity)
    assert not patient.done.wait(0.1)
    host.call("network", nics=[])
    assert patient.done.wait(2)


def test_what_only_begins_is_said_to_be_pending(agent: Agent, host: Host, identity: dict[str, Any]) -> None:
    class Tardy(Patient):
        name: ClassVar[str] = "tardy"
        pending: ClassVar[bool] = True

    class Missing(Tardy):
        name: ClassVar[str] = "missing"

        def observe(self, ctx: Context) -> tuple[bytes | None, dict[str, str]]:
            return None, {}

    agent.lifecycle.items += [Tardy(), Missing()]
    reports = by_item(host.call("identify", **identity)["items"])
    assert (reports["tardy"]["status"], reports["missing"]["status"]) == ("pending", "absent")
    assert reports["tardy"]["before"] and not reports["tardy"]["after"]


def test_what_is_fixed_is_said_to_be_shared(
    host: Host, root: Path, kernel: RecordingKernel, identity: dict[str, Any]
) -> None:
    kernel.cid = 3
    for report in (
        by_item(host.call("observe", key=KEY)["items"])["vsock_cid"],
        by_item(host.call("identify", **identity)["items"])["vsock_cid"],
    ):
        assert (report["status"], report["required"], report["details"]) == ("shared", False, {"cid": "3"})
        assert report["before"] == hmac.digest(bytes.fromhex(KEY), b"vsock_cid\0003", "sha256").hex()


class Other:
    """Another program of the guest: a process of this machine that is entered in the guest's /proc."""

    def __init__(self, root: Path, pid: int) -> None:
        self.pid = pid
        entry = root / "proc" / str(pid)
        entry.mkdir(parents=True)
        shutil.copy(f"/proc/{pid}/stat", entry / "stat")
        (entry / "task" / str(pid)).mkdir(parents=True)

    def waits(self) -> bool:
        return os.sched_getscheduler(self.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_IDLE


@pytest.fixture
def other(root: Path, needs: Any) -> Iterator[Other]:
    needs(root=True)
    with subprocess.Popen(["sleep", "600"]) as child:
        yield Other(root, child.pid)
        child.kill()


def test_other_programs_wait_until_the_clone_has_its_network(
    agent: Agent, host: Host, identity: dict[str, Any], other: Other
) -> None:
    patient = Patient()
    agent.lifecycle.items.append(patient)
    host.call("prepare", key=KEY)
    assert not other.waits()
    host.call("identify", **identity)
    assert other.waits()
    host.call("network", nics=[])
    assert patient.done.wait(2)
    assert os.sched_getscheduler(other.pid) == os.SCHED_OTHER
    host.call("identify", **identity)  # a lost reply is asked for again
    assert os.sched_getscheduler(other.pid) == os.SCHED_OTHER


def test_other_programs_go_on_when_a_clone_cannot_become_itself(
    agent: Agent, host: Host, root: Path, identity: dict[str, Any], other: Other
) -> None:
    host.call("prepare", key=KEY)
    shutil.rmtree(root / "run/liveclone")
    (root / "run/liveclone").write_text("a file where a folder should be")
    with pytest.raises(Refusal):
        host.call("identify", **identity)
    assert not other.waits()


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    with subprocess.Popen(["sleep", "600"]) as one, subprocess.Popen(["sleep", "600"]) as other:
        yield [one.pid, other.pid]
        one.kill()
        other.kill()


def test_what_other_programs_begin_meanwhile_does_not_stay_last(
    agent: Agent, host: Host, root: Path, identity: dict[str, Any], other: Other, sleepers: list[int]
) -> None:
    """A child inherits the last place, and a service that was restarted must not keep it."""
    background, restarted = sleepers
    os.sched_setscheduler(background, os.SCHED_IDLE, os.sched_param(0))
    Other(root, background)  # it has chosen to be last
    host.call("prepare", key=KEY)
    host.call("identify", **identity)
    late = Other(root, restarted)
    os.sched_setscheduler(restarted, os.SCHED_IDLE, os.sched_param(0))
    agent.lifecycle.settled.set()
    end = time.monotonic() + 5
    while other.waits() or late.waits():  # the kernel tells nobody of a new policy
        assert time.monotonic() < end
        time.sleep(0.02)
    assert os.sched_getscheduler(background) == os.SCHED_IDLE


def test_who_is_subscribed_does_not_wait(
    agent: Agent, host: Host, identity: dict[str, Any], other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone waits for its answer."""
    monkeypatch.setattr(agent.subscribers, "pids", lambda: {other.pid})
    host.call("prepare", key=KEY)
    host.call("identify", **identity)
    assert not other.waits()


@pytest.mark.parametrize("resumes", [True, False])
def test_a_sources_housekeeping_waits_from_prepare_on_and_not_for_ever(
    host: Host, identity: dict[str, Any], other: Other, monkeypatch: pytest.MonkeyPatch, resumes: bool
) -> None:
    monkeypatch.setattr(priority, "HOUSEKEEPING", {"sleep"})
    monkeypatch.setattr(lifecycle, "_SETTLE_S", 0.3)
    host.call("prepare", key=KEY)
    assert other.waits()
    if resumes:  # that makes no difference: what was put off is done meanwhile
        host.call("resume", **identity)
    deadline = time.monotonic() + 5
    while other.waits():  # the kernel tells nobody of a new policy
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert os.sched_getscheduler(other.pid) == os.SCHED_OTHER


def test_resume_lets_the_sources_programs_run(host: Host, identity: dict[str, Any], other: Other) -> None:
    host.call("prepare", key=KEY)
    host.call("resume", **identity)
    assert not other.waits()


def test_resume_touches_random_state_and_clock_alone(
    host: Host, root: Path, kernel: RecordingKernel, identity: dict[str, Any]
) -> None:
    result = host.call("resume", **{**identity, "hostname": None})
    assert {r["item"]: r["status"] for r in result["items"]} == {"rng": "changed", "clock": "configured"}
    assert kernel.name == "source"
    assert (root / "etc/machine-id").read_text() == "0123456789abcdef0123456789abcdef\n"
    assert host.call("ping")["generation"] == identity["generation"]


@pytest.mark.parametrize("generation", [None, {}, {"counter": "1", "uuid": "u"}, {"counter": 1}, 7])
def test_without_a_generation_nothing_is_reset(
    host: Host, kernel: RecordingKernel, identity: dict[str, Any], generation: object
) -> None:
    with pytest.raises(Refusal) as caught:
        host.call("identify", **{**identity, "generation": generation})
    assert caught.value.code == "bad-request"
    assert kernel.seeds == []


def test_an_item_that_fails_is_reported_and_harms_no_other(
    agent: Agent, host: Host, identity: dict[str, Any]
) -> None:
    class Broken(Item):
        name: ClassVar[str] = "broken"

        def observe(self, ctx: Context) -> tuple[bytes | None, dict[str, str]]:
            return b"x", {}

        def reset(self, ctx: Context) -> dict[str, str]:
            raise RuntimeError("no luck")

    class Fixed(Broken):
        name: ClassVar[str] = "fixed"

        def reset(self, ctx: Context) -> dict[str, str]:
            raise CannotChange("welded")

    class Lazy(Broken):
        name: ClassVar[str] = "lazy"
        slow: ClassVar[bool] = True

        def reset(self, ctx: Context) -> dict[str, str]:
            return {}

    agent.lifecycle.items += [Broken(), Fixed(), Lazy()]
    reports = by_item(host.call("identify", **identity)["items"])
    assert (reports["broken"]["status"], reports["broken"]["error"]) == ("failed", "RuntimeError: no luck")
    assert (reports["fixed"]["status"], reports["fixed"]["error"]) == ("shared", "welded")
    assert reports["lazy"]["status"] == "kept"
    assert reports["machine_id"]["status"] == "changed"


def test_a_read_only_file_is_shared(
    host: Host, root: Path, tmp_path: Path, needs_root: None, identity: Any
) -> None:
    target = root / "etc/machine-id"
    if subprocess.run(["mount", "--bind", target, target], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        report = by_item(host.call("identify", **identity)["items"])["machine_id"]
    finally:
        subprocess.run(["umount", target], check=True)
    assert report["status"] == "shared"
    assert "Read-only" in report["error"]


def test_slow_items_run_side_by_side(agent: Agent, host: Host, identity: dict[str, Any]) -> None:
    meeting = threading.Barrier(2, timeout=5)

    class Slow(Item):
        slow: ClassVar[bool] = True

        def __init__(self, name: str) -> None:
            self.__dict__["name"] = name

        def observe(self, ctx: Context) -> tuple[bytes | None, dict[str, str]]:
            return b"x", {}

        def reset(self, ctx: Context) -> dict[str, str]:
            meeting.wait()
            return {}

    agent.lifecycle.items += [Slow("one"), Slow("two")]
    reports = by_item(host.call("identify", **identity)["items"])
    assert reports["one"]["error"] == reports["two"]["error"] == ""


def test_an_item_that_hangs_meets_the_deadline(agent: Agent, host: Host, identity: dict[str, Any]) -> None:
    let_go = threading.Event()

    class Stuck(Item):
        name: ClassVar[str] = "stuck"
        slow: ClassVar[bool] = True

        def observe(self, ctx: Context) -> tuple[bytes | None, dict[str, str]]:
            return b"x", {}

        def reset(self, ctx: Context) -> dict[str, str]:
            let_go.wait(10)
            return {}

    agent.lifecycle.items.append(Stuck())
    with pytest.raises(Refusal) as caught:
        host.call("identify", deadline_s=0.2, **identity)
    assert caught.value.code == "deadline"
    assert caught.value.error["running"] == ["item stuck"]
    assert host.call("ping")
    with pytest.raises(Refusal) as caught:
        host.call("resume", deadline_s=0.2, **identity)
    assert caught.value.code == "busy"
    assert "identify" in caught.value.error["message"]
    let_go.set()
    assert host.call("resume", **identity)


def test_hooks_run_in_order_and_know_what_happens(
    host: Host, hook: Hook, root: Path, tmp_path: Path, identity: dict[str, Any]
) -> None:
    log = tmp_path / "log"
    facts = " ".join(
        f"$LIVECLONE_{fact}" for fact in ("EVENT", "SNAPSHOT", "COUNTER", "GENERATION", "HOSTNAME")
    )
    tell = f"echo $0 {facts} >> {log}\n"
    for event in ("prepare", "cloned", "resumed"):
        for name in ("20-b", "10-a", "left.dpkg-old", "edited~", ".hidden"):
            hook(event, name, tell)
    hook("prepare", "README", "exit 1").chmod(0o644)
    assert [h["name"] for h in host.call("prepare", key=KEY, snapshot="s1")["hooks"]] == ["10-a", "20-b"]
    host.call("identify", **identity)
    host.call("resume", **identity)
    folder = root / "etc/liveclone/hooks.d"
    uuid = identity["generation"]["uuid"]
    assert log.read_text().splitlines() == [
        f"{folder}/prepare/10-a prepare s1",
        f"{folder}/prepare/20-b prepare s1",
        f"{folder}/cloned/10-a cloned 1 {uuid} clone-1",
        f"{folder}/cloned/20-b cloned 1 {uuid} clone-1",
        f"{folder}/resumed/10-a resumed 1 {uuid} clone-1",
        f"{folder}/resumed/20-b resumed 1 {uuid} clone-1",
    ]


def test_a_prepare_hook_that_fails_calls_it_off(host: Host, hook: Hook, tmp_path: Path) -> None:
    hook("prepare", "10-bad", "echo not now >&2; exit 3")
    hook("resumed", "10-undo", f"touch {tmp_path}/undone")
    with pytest.raises(Refusal) as caught:
        host.call("prepare", key=KEY, snapshot="s1")
    assert caught.value.code == "hook-failed"
    assert "10-bad" in caught.value.error["message"]
    assert "not now" in caught.value.error["message"]
    assert caught.value.error["hooks"][0]["code"] == 3
    assert (tmp_path / "undone").exists()


def test_a_hook_that_fails_in_a_clone_is_reported(host: Host, hook: Hook, identity: dict[str, Any]) -> None:
    hook("cloned", "10-bad", "echo broken; exit 4")
    (report,) = host.call("identify", **identity)["hooks"]
    assert (report["name"], report["code"], report["output"]) == ("10-bad", 4, "broken")


def test_a_hook_that_hangs_is_killed_with_its_children(host: Host, hook: Hook, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    subprocess.run(["mkfifo", fifo], check=True)
    hook("prepare", "10-hang", f"sleep 60 > {fifo} & sleep 60")
    hook("prepare", "20-never", f"touch {tmp_path}/never")
    asked = host.send("prepare", deadline_s=0.3, key=KEY, snapshot="s1")
    with fifo.open() as alive:  # opens once the grandchild has, reads until it is gone
        with pytest.raises(Refusal) as caught:
            host.answer(asked)
        assert alive.read() == ""
    assert caught.value.code == "deadline"
    assert caught.value.error["running"] == ["hook prepare/10-hang"]
    end = time.monotonic() + 5
    while time.monotonic() < end:  # the call is wound up in its thread
        try:
            host.call("prepare", key=KEY, snapshot="s1", deadline_s=0.2)
        except Refusal as refusal:
            if refusal.code == "deadline":
                break
    assert not (tmp_path / "never").exists()


def test_a_hook_may_leave_a_daemon_behind(host: Host, hook: Hook, tmp_path: Path) -> None:
    hook("prepare", "10-daemon", f"setsid sleep 60 & echo $! > {tmp_path}/pid; exit 0")
    began = time.monotonic()
    host.call("prepare", key=KEY, snapshot="s1")
    assert time.monotonic() - began < 5
    subprocess.run(["kill", (tmp_path / "pid").read_text().strip()], check=True)


def test_a_script_without_interpreter_is_a_failed_hook(host: Host, root: Path) -> None:
    path = root / "etc/liveclone/hooks.d/prepare/10-bad"
    path.parent.mkdir(parents=True)
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(Refusal) as caught:
        host.call("prepare", key=KEY, snapshot="s1")
    assert caught.value.error["hooks"][0]["code"] in (126, 127)
