"""A clone gets a network only when it has been shown to be a machine of its own; one that has not is destroyed."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from liveclone.engine import agent as agents
from liveclone.engine import clone as clones
from liveclone.engine import identify, run
from liveclone.errors import GuestError, Refused, TimedOut
from liveclone.guest.items import load_items
from liveclone.host import links, netns
from liveclone.model.identity import ItemStatus
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import PATIENCE_S, Lab, Operation, check_clear

AGENT = "/usr/lib/liveclone/agent.pyz"

# Changes the agent in the guest and lets systemd start it anew, once the answer to this command is on its way.
PATCH = """python3 - <<'END'
import os, zipfile
with zipfile.ZipFile("{agent}") as archive:
    # Without the compiled modules, which would be older than their sources now.
    entries = {{name: archive.read(name) for name in archive.namelist() if not name.endswith(".pyc")}}
for module, old, new in {changes!r}:
    inside = f"liveclone_guest/{{module}}.py"
    text = entries[inside].decode()
    assert old in text, old
    entries[inside] = text.replace(old, new).encode()
with zipfile.ZipFile("{agent}.new", "w") as archive:
    for name, data in entries.items():
        archive.writestr(name, data)
os.replace("{agent}.new", "{agent}")
END
setsid sh -c 'sleep 0.3; systemctl restart liveclone-agent' >/dev/null 2>&1 &
"""
CHANGED = 'report["status"] = "kept" if before == after else "changed"'
ONLY = "        with self._only(call, request):"
FRESH = "        fresh = render"
RESET = "            told = item.reset(ctx)"

# packet(7)
ETH_P_ALL, SOL_PACKET, ADD_MEMBERSHIP, PROMISCUOUS = 3, 263, 1, 1

# An agent in which things go wrong as the name asks for that it is given: fail-rng, lie-all.
SPOILT = (
    ("renewal", "if before is None and item.only_renews:", "if False:"),
    (
        "renewal",
        RESET,
        """\
            how, _, which = ctx.hostname.partition("-")
            how = how if which in ("all", item.name.replace("_", "-")) else ""
            if how == "fail":
                raise RuntimeError("no luck")
            if how == "hang":
                time.sleep(600)
            told = {} if how == "lie" else item.reset(ctx)""",
    ),
    (
        "renewal",
        CHANGED,
        f"""{CHANGED}
            if how == "lie" and (before or after) and not item.configured:
                report.update(status="changed", after=report["before"])""",
    ),
)

FORGED = "0266006f7267"

READ_ONLY = "mount --bind {0} {0} && mount -o remount,ro,bind {0}"


def patch(*changes: tuple[str, str, str]) -> str:
    """Return the script that replaces a text by another in modules of the agent."""
    return PATCH.format(changes=changes, agent=AGENT)


# What is done to the guest before its snapshot, which items the host then finds fault with, and with what words.
BROKEN = {
    "what it cannot change": (
        READ_ONLY.format("/etc/machine-id") + "\n" + READ_ONLY.format("/etc/ssh"),
        {"machine_id": "snapshot's value", "ssh_host_keys": "snapshot's value"},
    ),
    "an agent that lies": (
        patch(
            ("renewal", RESET, f'{RESET} if item.name != "machine_id" else {{}}'),
            ("renewal", CHANGED, 'report["status"] = "changed"'),
        ),
        {"machine_id": "its new value is the snapshot's"},
    ),
    "an agent that leaves something out": (
        patch(
            (
                "renewal",
                "for item in items]",
                "for item in items if item.name != 'rng']",
            )
        ),
        {"rng": "did not report it"},
    ),
    "a reset that fails": (
        patch(("items/machine_id", FRESH, f"        raise RuntimeError('no luck')\n{FRESH}")),
        {"machine_id": "its reset failed: RuntimeError: no luck"},
    ),
}


@pytest.fixture
def broken(lab: Lab, clone: Machine) -> Iterator[Callable[[str], Snapshot]]:
    """Return what makes a snapshot of a guest in which a script has been run first."""
    taken: list[Snapshot] = []

    def make(script: str) -> Snapshot:
        before = ping(lab, clone)
        lab.shell(clone, script)
        if AGENT in script:
            while (
                ping(lab, clone) == before
            ):  # each asks and waits for the answer of whichever agent is there
                pass
        taken.append(lab.snapshot(clone))
        return taken[-1]

    yield make
    for found in taken:
        for machine in lab.ctx.machines.list():
            if machine.clone_of == found.id:
                lab.remove(machine)
        lab.remove_snapshot(found)


def ping(lab: Lab, machine: Machine) -> int:
    """Return the pid of the agent that answers."""

    async def ask() -> int:
        handle = await lab.ctx.driver.open(machine, lab.ctx.layout.machine(machine.id))
        try:
            async with agents.connect(handle, machine.name) as agent:
                return int((await agent.call("ping", deadline_s=PATIENCE_S, repeat=True))["pid"])
        finally:
            await handle.close()

    return lab.wait(ask())


def check_gone(lab: Lab, result: clones.Result) -> None:
    """Fail unless nothing of the clone is left; processes, taps, files and leases are looked at after each test."""
    assert result.machine is None
    assert result.name not in [machine.name for machine in lab.ctx.machines.list()]
    assert not [line for line in lab.qemus().values() if f"guest={result.name}," in line]


@pytest.mark.parametrize("how", BROKEN)
def test_a_clone_that_is_not_verified_is_destroyed(
    lab: Lab, broken: Callable[[str], Snapshot], how: str
) -> None:
    script, wrong = BROKEN[how]
    taken = broken(script)
    (result,) = lab.results(taken)
    error = result.error
    assert isinstance(error, GuestError)
    assert error.code == "not-verified"
    check_clear(error)
    for item, words in wrong.items():
        assert item in error.seen
        assert words in error.seen
    check_gone(lab, result)


def test_a_failed_clone_can_be_kept_without_a_network(lab: Lab, broken: Callable[[str], Snapshot]) -> None:
    taken = broken(READ_ONLY.format("/etc/machine-id"))
    (result,) = lab.results(taken, keep_failed=True, names=["kept"])
    assert isinstance(result.error, GuestError)
    machine = lab.ctx.machines.find("kept")
    assert machine.quarantined
    # It runs, and can be looked at, but has no NIC: neither in QEMU, nor in the guest, nor a tap on the host.
    assert lab.nics(machine) == []
    assert lab.shell(machine, "ls /sys/class/net") == "lo"
    assert not [name for name in lab.taps() if machine.id in name]
    evidence = lab.ctx.evidence(taken.id).load(machine.id)
    assert evidence is not None and not evidence.verified
    assert [finding.item for finding in evidence.findings] == ["machine_id"]
    # And there is no way around.
    with pytest.raises(Refused) as refused:
        lab.snapshot(machine)
    assert refused.value.code == "quarantined"
    lab.stop(machine, force=True)
    with pytest.raises(Refused) as refused:
        lab.wait(run.start(lab.ctx, machine.id))
    assert refused.value.code == "quarantined"
    lab.remove(machine)


def test_siblings_are_not_harmed(lab: Lab, broken: Callable[[str], Snapshot], source: Machine) -> None:
    """A hook that fails in one clone of three: that one goes, the others are ready."""
    taken = broken(
        "printf '#!/bin/sh\\ncase $LIVECLONE_HOSTNAME in bad*) echo cannot be cloned; exit 3;; esac\\n' "
        "> /etc/liveclone/hooks.d/cloned/10-app; chmod +x /etc/liveclone/hooks.d/cloned/10-app"
    )
    results = lab.results(taken, 3, names=["good-1", "bad", "good-2"])
    first, bad, second = results
    assert isinstance(bad.error, GuestError)
    assert "hook cloned/10-app: it ended with 3: cannot be cloned" in bad.error.seen
    check_gone(lab, bad)
    token = lab.http(source)["token"]
    for result in (first, second):
        assert result.error is None and result.machine is not None
        app = lab.http(result.machine, "/identity")
        assert (app["token"], app["hostname"]) == (token, result.name)


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        # Another thread takes the signal, and does not get to it while this one works.
        (
            "import os, signal, time; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(600)",
            "agent-silent",
            "nothing for",
        ),
        ("import time; time.sleep(600)", "agent-deadline", "item machine_id still ran"),
    ],
    ids=["stopped", "busy"],
)
def test_an_agent_that_hangs_is_an_error_that_names_it(
    lab: Lab,
    broken: Callable[[str], Snapshot],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    code: str,
    words: str,
) -> None:
    taken = broken(patch(("items/machine_id", FRESH, f"        {how}\n{FRESH}")))
    monkeypatch.setattr(identify, "IDENTIFY_DEADLINE_S", 3.0)
    (result,) = lab.results(taken)
    error = result.error
    assert isinstance(error, TimedOut)
    assert error.code == code
    assert words in error.seen
    assert result.name in error.message
    check_clear(error)
    check_gone(lab, result)


def test_an_agent_that_dies_is_started_again_and_asked_again(
    lab: Lab, broken: Callable[[str], Snapshot]
) -> None:
    """Once, before it has changed anything: the next agent finds the mark and does it all."""
    dies = "import os; os.path.exists('/run/died') or (os.mkdir('/run/died'), os.kill(os.getpid(), 9))"
    taken = broken(patch(("lifecycle", ONLY, f"{ONLY}\n            {dies}")))
    machine = lab.clone(taken)
    assert lab.shell(machine, "ls -d /run/died; hostname") == f"/run/died\n{machine.name}"
    lab.remove(machine)


def test_no_nic_before_the_evidence_is_verified(lab: Lab, source: Machine, snapshotted: Snapshot) -> None:
    """A clone is stopped at each point on its way: no tap until it is verified, and not a frame of its on the bridge."""
    before = set(lab.taps())
    steps = [
        "clone.made",
        "clone.loaded",
        "clone.restored",
        "clone.resumed",
        "clone.identified",
        "clone.verified",
    ]
    wire = open_wire(lab)
    with wire, Operation(lab, "clone", stops=steps, snapshot=snapshotted.id, names=["watched"]) as cloning:
        for step in steps:
            cloning.reach(step)
            assert set(lab.taps()) == before, f"there is a tap at {step}"
            cloning.go_on(step)
        assert cloning.result()["ok"] == [{"name": "watched", "error": None}]
        machine = lab.ctx.machines.find("watched")
        (tap,) = set(lab.taps()) - before
        assert machine.id in tap
        lab.http(machine)  # a guest that nobody asks may not have said anything yet
        senders = read_senders(wire)
    # All frames since before the clone was made: its MAC appears, and until it was plugged nobody else's but these did.
    gateway = lab.ctx.network_spec().mac
    assert machine.nics[0].mac in senders
    known = {gateway, machine.nics[0].mac, *(nic.mac for m in lab.ctx.machines.list() for nic in m.nics)}
    assert senders <= known
    lab.remove(machine)


def test_no_item_can_fail_lie_or_hang_unnoticed(
    lab: Lab, broken: Callable[[str], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every required item that the agent has, on one snapshot; tests/unit/engine/test_fail_closed.py has each alone."""
    required = [item for item in load_items() if item.required]
    taken = broken(patch(*SPOILT))
    opened: list[str] = []
    open_tap = links.open_tap

    def watched(spec: links.NetworkSpec, machine_id: str, nic_index: int) -> int:
        opened.append(machine_id)
        return open_tap(spec, machine_id, nic_index)

    monkeypatch.setattr(links, "open_tap", watched)
    with open_wire(lab) as wire:
        failing, lying = lab.results(taken, 2, names=["fail-all", "lie-all"])
        names = [f"hang-{item.name.replace('_', '-')}" for item in required]
        with monkeypatch.context() as impatient:
            impatient.setattr(identify, "IDENTIFY_DEADLINE_S", 3.0)
            hanging = lab.results(taken, len(names), names=names)
        senders = read_senders(wire)
        assert opened == [], "no tap was ever made"
        known = {lab.ctx.network_spec().mac, *(nic.mac for m in lab.ctx.machines.list() for nic in m.nics)}
        assert senders <= known
        (result,) = lab.results(taken, names=["good"])
        good, evidence = result.machine, result.evidence
        assert good is not None
        assert evidence is not None
        assert opened == [good.id]
        lab.http(good)
        assert good.nics[0].mac in read_senders(wire), "a clone that is verified is heard"

    failed, lied = (seen_of(result) for result in (failing, lying))
    changed = {report.item for report in evidence.items if report.status is ItemStatus.CHANGED}
    assert changed >= {"rng", "hostname", "machine_id", "boot_id", "random_seed", "ssh_host_keys"}
    for item in required:
        assert f"{item.name}: its reset failed: RuntimeError: no luck" in failed
        # What has no value cannot be lied about so; of what is only configured the host sees the clock (docs/hazards.md).
        found = item.name in [finding.partition(":")[0] for finding in lied.split("; ")]
        assert found is (item.name in changed or item.name == "clock"), item.name
    for item, result in zip(required, hanging, strict=True):
        assert isinstance(result.error, TimedOut) and result.error.code == "agent-deadline", item.name
        assert f"item {item.name} still ran" in result.error.seen
    for result in (failing, lying, *hanging):
        check_gone(lab, result)


def seen_of(result: clones.Result) -> str:
    assert isinstance(result.error, GuestError)
    assert result.error.code == "not-verified"
    return result.error.seen


def test_a_guest_that_gives_its_card_another_mac_is_seen(lab: Lab, broken: Callable[[str], Snapshot]) -> None:
    """It says that it uses the one it was given, and so it does until then."""
    forge = f"""\
        import fcntl, socket, struct
        request = struct.pack("16sH6s8x", interfaces[0]["name"].encode(), 1, bytes.fromhex("{FORGED}"))
        fcntl.ioctl(socket.socket(), 0x8924, request)  # SIOCSIFHWADDR
        return {{"interfaces": interfaces}}"""
    taken = broken(patch(("network", '        return {"interfaces": interfaces}', forge)))
    (result,) = lab.results(taken)
    assert seen_of(result) == f"network: the hypervisor sees {bytes.fromhex(FORGED).hex(':')}"
    check_gone(lab, result)


def open_wire(lab: Lab) -> socket.socket:
    """Listen to every frame on the bridge."""
    namespace, bridge = lab.ctx.layout.namespace, lab.ctx.network_spec().bridge
    packets = netns.make_socket(namespace, family=socket.AF_PACKET, kind=socket.SOCK_RAW)
    packets.bind((bridge, ETH_P_ALL))
    index = netns.run_inside(namespace, lambda: socket.if_nametoindex(bridge))
    packets.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("iHH8x", index, PROMISCUOUS, 0))
    return packets


def read_senders(packets: socket.socket) -> set[str]:
    """Return the MACs of all who have sent a frame."""
    senders = set()
    try:
        while True:
            senders.add(packets.recv(65536)[6:12].hex(":"))
    except BlockingIOError:
        return senders


def test_no_error_is_lost_on_the_way(lab: Lab, broken: Callable[[str], Snapshot]) -> None:
    """In a process of its own, as a command is: the result carries the error's fields."""
    taken = broken(READ_ONLY.format("/etc/machine-id"))
    with Operation(lab, "clone", snapshot=taken.id, count=2) as cloning:
        results = cloning.result()["ok"]
    assert [result["error"]["error"] for result in results] == ["not-verified"] * 2
    assert lab.ctx.machines.list()
    assert not [machine for machine in lab.ctx.machines.list() if machine.clone_of == taken.id]
