"""Every snapshot but a machine's first: by background, by stream, of clones, of clones of clones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.engine import snapshot
from liveclone.errors import Refused
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.snapshot import CaptureMethod, Snapshot
from tests.machines import Lab, Ticks, check_clear
from tests.vm.conftest import Story


@pytest.fixture
def taken(lab: Lab) -> Iterator[list[Snapshot]]:
    """Snapshots to be removed after the test, with the clones that came from them."""
    taken: list[Snapshot] = []
    yield taken
    for machine in lab.ctx.machines.list():
        if machine.clone_of in {found.id for found in taken}:
            lab.remove(machine)
    for found in taken:
        lab.remove_snapshot(found)


def take_under_load(lab: Lab, machine: Machine, method: CaptureMethod | None = None) -> Snapshot:
    """Take a snapshot while a client reads: its connection must go on, in order."""

    async def work() -> Snapshot:
        ticks = await Ticks.open(lab, machine)
        await ticks.more(10)
        found = await snapshot.take(lab.ctx, snapshot.Request(machine=machine.id, method=method))
        await ticks.drain()
        await ticks.more(10)
        await ticks.close()
        return found

    return lab.wait(work())


def check_copy(lab: Lab, copy: Machine, original: Machine, marks: dict[str, str]) -> None:
    """Fail unless the clone is warm, itself, and has what the original had in memory and on disk."""
    app = lab.http(copy, "/identity")
    assert app["token"] == lab.http(original)["token"]
    assert app["hostname"] == copy.name
    for path, text in marks.items():
        assert lab.shell(copy, f"cat {path}") == text
    evidence = lab.ctx.evidence(copy.clone_of).load(copy.id)
    assert evidence is not None and evidence.verified


def test_a_second_snapshot_of_the_source(
    lab: Lab, story: Story, source: Machine, taken: list[Snapshot]
) -> None:
    """By background: the source's process stays, since its RAM is the first snapshot's image already."""
    lab.shell(source, "echo second > /run/mark; echo second > /var/lib/mark; sync")
    before = lab.reload(source)
    second = take_under_load(lab, source)
    taken.append(second)
    after = lab.reload(source)
    assert second.capture.method is CaptureMethod.BACKGROUND
    assert second.capture.pause_ns > 0
    assert after.process == before.process
    assert after.nics == before.nics
    assert after.generation.counter == before.generation.counter + 1
    assert after.layers[:2] == (second.id, story.snapshot.id)
    assert second.layers == (story.snapshot.id,)
    assert second.hot is not None and Path(second.hot.path) != Path(str(before.memory and before.memory.path))
    lab.shell(source, "echo third > /run/mark; echo third > /var/lib/mark; sync")
    copy = lab.clone(second)
    check_copy(lab, copy, source, {"/run/mark": "second", "/var/lib/mark": "second"})
    # The first snapshot is what it was.
    old = lab.clone(story.snapshot)
    try:
        assert lab.shell(old, "cat /run/mark /var/lib/mark 2>&1 || :").count("No such file") == 2
        assert lab.shell(old, "cat /var/lib/written") == "of-the-source"
    finally:
        lab.remove(old)


def test_a_snapshot_of_a_clone_and_a_clone_of_that(
    lab: Lab, clone: Machine, source: Machine, taken: list[Snapshot]
) -> None:
    lab.shell(clone, "echo of-the-clone > /run/mark; echo of-the-clone > /var/lib/mark")
    first = take_under_load(lab, clone)
    taken.append(first)
    assert first.capture.method is CaptureMethod.BACKGROUND
    assert first.source == clone.id
    child = lab.clone(first)
    check_copy(lab, child, source, {"/run/mark": "of-the-clone", "/var/lib/mark": "of-the-clone"})
    assert child.layers == (first.id, *clone.layers)

    # And once more: the clone of a clone is a source as any other.
    lab.shell(child, "echo of-the-child > /run/mark")
    second = take_under_load(lab, child)
    taken.append(second)
    grandchild = lab.clone(second)
    marks = {"/run/mark": "of-the-child", "/var/lib/mark": "of-the-clone"}
    check_copy(lab, grandchild, source, marks)
    identities = [lab.http(m, "/identity") for m in (source, clone, child, grandchild)]
    for what in ("hostname", "machine_id", "host_key", "mac", "random"):
        assert len({identity[what] for identity in identities}) == 4, what
    look = "cat /proc/sys/kernel/random/boot_id; grep -c /boot_id /proc/mounts || :"
    boot_ids, mounts = zip(
        *(lab.shell(m, look).split() for m in (source, clone, child, grandchild)), strict=True
    )
    assert len(set(boot_ids)) == 4
    assert set(mounts) == {"1"}  # bound when the source was started; written anew since, not bound once more


LOG_IN = r"""
mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/key; cp /root/key.pub /root/.ssh/authorized_keys
cat >/root/visit <<'X'
eval $(ssh-agent) >/dev/null
exec ssh -A -tt -i /root/key -o StrictHostKeyChecking=no root@127.0.0.1 '
    nohup sleep 7777 >/dev/null & echo $SSH_AUTH_SOCK >/run/visited; exec sleep 8888'
X
unit=serial-getty@ttyS0.service; mkdir /run/systemd/system/$unit.d
printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root ttyS0 vt100\n' >/run/systemd/system/$unit.d/a.conf
systemctl daemon-reload; systemctl restart $unit; systemd-run -q --unit visit sh /root/visit
until [ -s /run/visited ] && pgrep -x bash; do sleep 0.1; done
rm -r /run/systemd/system/$unit.d; systemctl daemon-reload
"""
LOGINS = r"""
pgrep -x bash >/dev/null && echo console; pgrep -f '^sleep 8888' >/dev/null && echo ssh
pgrep -f '^sleep 7777' >/dev/null && echo nohup; pgrep -f '^sleep 9999' >/dev/null && echo exec
SSH_AUTH_SOCK=$(cat /run/visited) ssh-add -l 2>&1 | grep -q 'no identities' && echo agent
pgrep -x agetty >/dev/null && echo getty; exit 0
"""


def test_who_is_logged_in_is_logged_out_in_a_clone_alone(
    lab: Lab, clone: Machine, taken: list[Snapshot]
) -> None:
    """One on the console, one by ssh with an agent forwarded; over the loopback, whose connections a clone keeps."""
    lab.shell(clone, LOG_IN)
    lab.shell(clone, "setsid sleep 9999 </dev/null >/dev/null 2>&1 &")
    everything = ["console", "ssh", "nohup", "exec", "agent"]
    assert lab.shell(clone, LOGINS).split() == everything
    # The default policy refuses a machine in which an agent holds keys; this one holds none.
    request = snapshot.Request(machine=clone.id, policy="open")
    taken.append(lab.wait(snapshot.take(lab.ctx, request)))
    child = lab.clone(taken[-1])
    evidence = lab.ctx.evidence(taken[-1].id).load(child.id)
    assert evidence is not None
    (item,) = [one for one in evidence.items if one.item == "login_sessions"]
    assert item.details == {"killed": "3"}  # login, and sshd's two processes
    lab.shell(child, "until pgrep -x agetty; do sleep 0.1; done")
    assert lab.shell(child, LOGINS).split() == ["nohup", "exec", "getty"]
    assert lab.shell(clone, LOGINS).split() == everything


def test_a_snapshot_by_stream(lab: Lab, clone: Machine, source: Machine, taken: list[Snapshot]) -> None:
    lab.shell(clone, "echo streamed > /run/mark; echo streamed > /var/lib/mark")
    before = lab.reload(clone)
    found = take_under_load(lab, clone, CaptureMethod.STREAM)
    taken.append(found)
    assert found.capture.method is CaptureMethod.STREAM
    assert lab.reload(clone).process == before.process
    check_copy(lab, lab.clone(found), source, {"/run/mark": "streamed", "/var/lib/mark": "streamed"})


def test_a_machine_from_a_sealed_copy_is_captured_by_stream(
    lab: Lab, clone: Machine, source: Machine, taken: list[Snapshot]
) -> None:
    """Its RAM maps a file on a disk, which cannot be write-protected: the product chooses the stream by itself."""
    lab.shell(clone, "echo sealed > /run/mark")
    sealed = lab.snapshot(clone, wait_sealed=True)
    taken.append(sealed)
    assert sealed.hot is not None
    Path(sealed.hot.path).unlink()  # what a reboot of the host does
    machine = lab.clone(sealed)
    assert machine.memory is not None and machine.memory.source is MemorySource.PRIVATE_DISK
    check_copy(lab, machine, source, {"/run/mark": "sealed"})
    with pytest.raises(Refused) as refused:
        lab.snapshot(machine, method=CaptureMethod.BACKGROUND)
    assert refused.value.code == "no-background"
    lab.shell(machine, "echo again > /run/mark")
    again = take_under_load(lab, machine)
    taken.append(again)
    assert again.capture.method is CaptureMethod.STREAM
    check_copy(lab, lab.clone(again), source, {"/run/mark": "again"})


def test_a_second_handover_is_refused(lab: Lab, story: Story, source: Machine) -> None:
    with pytest.raises(Refused) as refused:
        lab.snapshot(source, method=CaptureMethod.HANDOVER)
    assert refused.value.code == "no-handover"
    check_clear(refused.value, source_state="running")
