"""The contract of drivers/base.py, held against every hypervisor.

Tests are stories about one machine ("subject"). What must hold after anything that fails: the source runs on, in one
process, on the disk it had.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from liveclone import trace
from liveclone.drivers.base import BootPlan
from liveclone.engine import agent as agents
from liveclone.errors import (
    HypervisorError,
    Interrupted,
    LivecloneError,
    NotFound,
    StoreError,
    TimedOut,
    Unsupported,
)
from liveclone.host import process
from liveclone.model.machine import Boot, Hardware, MachineState, Memory, MemorySource
from liveclone.model.network import Port
from liveclone.model.snapshot import CaptureMethod
from liveclone.units import MIB

from .children import Children
from .lab import Lab, Shot, Subject, capture_in_child, make_nic, make_overlay, plan_for_child

HANDOVER, BACKGROUND, STREAM = CaptureMethod.HANDOVER, CaptureMethod.BACKGROUND, CaptureMethod.STREAM
with_ports = pytest.mark.needs_ports
with_handover = pytest.mark.needs_method(HANDOVER)
every_method = pytest.mark.parametrize("method", list(CaptureMethod), ids=lambda method: method.value)

DRIVERS = Path(__file__).resolve().parents[2] / "src" / "liveclone" / "drivers"


def points_of(driver: str) -> set[str]:
    """Return the named points of a driver's captures, from its source: "handover.paused", ..."""
    texts = [path.read_text() for path in (DRIVERS / driver).glob("*.py")]
    names = {method.value for method in CaptureMethod}
    found = {point for text in texts for point in re.findall(r'trace\.at\("([a-z.-]+)"\)', text)}
    return {point for point in found if point.partition(".")[0] in names}


# Life and death


async def test_a_booted_machine_runs_and_says_what_it_is(lab: Lab) -> None:
    subject = await lab.boot()
    assert await subject.handle.state() is MachineState.RUNNING
    assert process.is_alive(subject.handle.process)
    assert lab.processes() == [subject.pid]
    hardware = subject.handle.hardware
    assert hardware.machine_type and hardware.cpu and hardware.hypervisor.startswith(f"{lab.name} ")
    assert await subject.handle.nics() == ()
    await lab.runs_on(subject)
    await lab.check(subject)


async def test_abilities_name_the_driver_and_its_methods(lab: Lab) -> None:
    abilities = await lab.driver.abilities()
    assert abilities.name == lab.driver.name == lab.name
    assert abilities.problems == ()
    assert abilities.version and abilities.acceleration_reason
    assert abilities.capture_methods


async def test_pause_and_resume_may_be_asked_twice(lab: Lab) -> None:
    subject = await lab.boot()
    for wanted, ask in (
        (MachineState.PAUSED, subject.handle.pause),
        (MachineState.RUNNING, subject.handle.resume),
    ):
        await ask()
        assert await subject.handle.state() is wanted
        await ask()
        assert await subject.handle.state() is wanted
    await lab.runs_on(subject)


async def test_a_machine_is_found_again_after_its_connection_was_closed(lab: Lab) -> None:
    subject = await lab.boot()
    first = subject.handle
    await lab.reopen(subject)
    assert subject.handle is not first
    assert subject.handle.process == first.process
    assert await subject.handle.state() is MachineState.RUNNING
    await lab.runs_on(subject)


async def test_a_second_connection_waits_for_the_first_one_to_end(lab: Lab) -> None:
    subject = await lab.boot()
    second = asyncio.create_task(lab.driver.open(subject.machine, subject.folder))
    await subject.handle.state()
    assert not second.done()
    await subject.handle.close()
    subject.handle = await second
    assert await subject.handle.state() is MachineState.RUNNING


async def test_a_killed_machine_is_gone_with_all_it_had(lab: Lab) -> None:
    subject = await lab.boot()
    await subject.handle.close()
    await subject.handle.kill()
    assert lab.processes() == []
    assert not list(subject.folder.glob("run*"))
    assert Path(subject.machine.disk).exists()
    with pytest.raises(NotFound) as caught:
        await lab.driver.open(subject.machine, subject.folder)
    assert caught.value.code == "not-running"
    with pytest.raises(NotFound):
        await lab.driver.connect_port(subject.machine, subject.folder, "agent")


async def test_a_machine_whose_process_died_is_noticed_at_once(lab: Lab) -> None:
    subject = await lab.boot()
    await process.end(subject.handle.process)
    with pytest.raises((Interrupted, NotFound)):
        await subject.handle.state()
    with pytest.raises(NotFound) as caught:
        await lab.driver.open(subject.machine, subject.folder)
    assert caught.value.code == "not-running"


async def test_the_power_button_ends_the_process_or_is_told_to_be_ignored(lab: Lab) -> None:
    subject = await lab.boot()
    await lab.write(subject, "kept", "over a shutdown")
    if lab.obeys_power_button:
        await subject.handle.power_down(60.0)
        assert lab.processes() == []
        return
    with pytest.raises(TimedOut) as caught:
        await subject.handle.power_down(0.5)
    assert caught.value.code == "still-running"
    assert lab.processes() == [subject.pid]
    await lab.runs_on(subject)


async def test_a_failed_boot_leaves_no_process_and_no_ram(lab: Lab) -> None:
    folder = lab.machine_folder("hopeless")
    memory = Memory(path=str(lab.hot / "hopeless.ram"), source=MemorySource.SHARED_HOT)
    plan = BootPlan(
        machine_id="0" * 12,
        name="hopeless",
        folder=folder,
        hardware=Hardware(ram_bytes=128 * MIB),
        boot=Boot(),
        disk=folder / "missing.qcow2",
        memory=memory,
    )
    with pytest.raises((HypervisorError, StoreError)) as caught:  # a driver may read a disk's head itself
        await lab.driver.boot(plan)
    assert "missing.qcow2" in f"{caught.value.on} {caught.value.seen}"
    assert lab.processes() == []
    assert not list(folder.glob("run*"))
    assert not Path(memory.path).exists()


@with_handover
async def test_a_failed_ram_file_is_an_error_of_the_store(lab: Lab) -> None:
    folder = lab.machine_folder("homeless")
    disk = folder / "disk.qcow2"
    base = folder / "base.qcow2"
    base.touch()
    make_overlay(disk, base)
    memory = Memory(path=str(lab.hot / "missing" / "x.ram"), source=MemorySource.SHARED_HOT)
    hardware = Hardware(ram_bytes=128 * MIB)
    plan = BootPlan(
        machine_id="0" * 12,
        name="homeless",
        folder=folder,
        hardware=hardware,
        boot=Boot(),
        disk=disk,
        memory=memory,
    )
    with pytest.raises(StoreError):
        await lab.driver.boot(plan)
    assert lab.processes() == []


# The agent's ports


async def test_the_agent_answers_on_both_ports(lab: Lab) -> None:
    subject = await lab.boot()
    for port in ("agent", "exec"):
        async with agents.connect(subject.handle, "source", port) as agent:
            assert "ssh_host_keys" in (await agent.call("ping", deadline_s=30.0, repeat=True))["items"]


async def test_ports_that_are_there_are_nobody_elses_to_take_away(lab: Lab) -> None:
    subject = await lab.boot()
    before = await subject.handle.ports()
    assert [(port.name, port.live, port.persistent, port.added) for port in before] == [
        ("agent", True, True, False),
        ("exec", True, True, False),
    ]
    await subject.handle.add_ports(persistent=True)
    await subject.handle.remove_ports()
    assert await subject.handle.ports() == before
    with pytest.raises(Unsupported) as caught:
        await subject.handle.ask_stock_agent("guest-info", {}, 5.0)
    assert caught.value.code == "no-stock-agent"


async def test_a_port_is_reached_without_a_handle(lab: Lab) -> None:
    subject = await lab.boot()
    for port in ("exec", "console"):
        _, writer = await lab.driver.connect_port(subject.machine, subject.folder, port)
        writer.close()
        await writer.wait_closed()


async def test_a_request_to_a_machine_that_stands_still_waits_until_it_runs(lab: Lab) -> None:
    subject = await lab.boot()
    await subject.handle.pause()
    async with agents.connect(subject.handle, "source") as agent:
        asking = asyncio.create_task(agent.call("ping", deadline_s=30.0, repeat=True))
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        await subject.handle.resume()
        assert (await asking)["protocol"] == 1


# NICs


async def test_a_nic_comes_and_goes(lab: Lab) -> None:
    subject = await lab.boot()
    for _ in range(2):
        await subject.handle.plug(make_nic(), (), None)
        assert await subject.handle.nics() == ("nic0",)
        await subject.handle.unplug("nic0", 30.0)
        assert await subject.handle.nics() == ()
    assert await subject.handle.state() is MachineState.RUNNING


async def test_two_nics_at_once(lab: Lab) -> None:
    subject = await lab.boot()
    await subject.handle.plug(make_nic("nic0", "02:00:00:00:00:01"), (), None)
    await subject.handle.plug(make_nic("nic1", "02:00:00:00:00:02"), (), None)
    assert sorted(await subject.handle.nics()) == ["nic0", "nic1"]
    assert sorted(await subject.handle.macs()) == ["02:00:00:00:00:01", "02:00:00:00:00:02"]
    await subject.handle.unplug("nic0", 30.0)
    assert await subject.handle.nics() == ("nic1",)
    assert await subject.handle.macs() == ("02:00:00:00:00:02",)


@with_ports
async def test_ports_are_published_as_long_as_the_nic_is_there(lab: Lab) -> None:
    subject = await lab.boot()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    await subject.handle.plug(make_nic(), (Port(host_port=number, guest_port=80),), None)
    socket.create_connection(("127.0.0.1", number), timeout=10).close()
    await subject.handle.unplug("nic0", 30.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number), timeout=10)


@with_ports
async def test_a_nic_that_cannot_be_plugged_leaves_nothing(lab: Lab) -> None:
    subject = await lab.boot()
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as taken:
        numbers = [server.getsockname()[1] for server in (free, taken)]
        free.close()
        ports = tuple(Port(host_port=number, guest_port=80) for number in numbers)
        with pytest.raises(HypervisorError):
            await subject.handle.plug(make_nic(), ports, None)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", numbers[0]), timeout=10)
    assert await subject.handle.nics() == ()
    await subject.handle.plug(make_nic(), (), None)
    assert await subject.handle.nics() == ("nic0",)


async def test_a_nic_is_not_plugged_twice(lab: Lab) -> None:
    subject = await lab.boot()
    await subject.handle.plug(make_nic(), (), None)
    with pytest.raises(HypervisorError):
        await subject.handle.plug(make_nic(), (), None)
    assert await subject.handle.nics() == ("nic0",)


async def test_ports_that_cannot_be_published_are_refused(lab: Lab) -> None:
    if not lab.publishes_ports:
        subject = await lab.boot()
        with pytest.raises(Unsupported) as caught:
            await subject.handle.plug(make_nic(), (Port(host_port=1, guest_port=80),), None)
        assert caught.value.code == "no-ports"
        assert await subject.handle.nics() == ()


async def test_a_nic_that_is_not_there_cannot_be_unplugged(lab: Lab) -> None:
    subject = await lab.boot()
    with pytest.raises(HypervisorError):
        await subject.handle.unplug("nic7", 1.0)


# Capture and restore


@every_method
async def test_a_capture_is_of_one_instant_and_the_source_goes_on(lab: Lab, method: CaptureMethod) -> None:
    subject = await lab.boot()
    notes: list[str] = []
    await lab.runs_on(subject)
    before = await lab.count(subject)
    await lab.write(subject, "note", "as captured")
    shot = await lab.capture(subject, method, note=lambda step, **facts: notes.append(step))
    assert notes, "a capture tells how far it is"
    assert shot.captured.pause_ns > 0
    assert shot.captured.devices
    assert await subject.handle.state() is MachineState.RUNNING
    assert lab.processes() == [subject.pid]
    await lab.runs_on(subject)
    await lab.check(subject)
    await lab.write(subject, "note", "later")
    await lab.go_ahead(subject)
    later = await lab.count(subject)
    parts = shot.digests()

    clone = await lab.restore(shot, "clone")
    assert await clone.handle.state() is MachineState.PAUSED
    assert await clone.handle.nics() == ()
    assert before <= await lab.wake(clone) < later
    await lab.check(clone)
    assert await lab.read(clone, "note") == "as captured"
    await lab.runs_on(clone)
    await lab.check(clone)
    assert shot.digests() == parts


@every_method
async def test_clones_and_source_do_not_feel_each_other(lab: Lab, method: CaptureMethod) -> None:
    subject = await lab.boot()
    await lab.write(subject, "note", "source")
    shot = await lab.capture(subject, method)
    parts = shot.digests()
    clones = await asyncio.gather(*(lab.restore(shot, f"clone{n}") for n in range(3)))
    for number, clone in enumerate(clones):
        await clone.handle.resume()
        await lab.write(clone, "note", f"clone {number}")
    await lab.runs_on(clones[0])
    for number, clone in enumerate(clones):
        assert await lab.read(clone, "note") == f"clone {number}"
        await lab.check(clone)
    assert await lab.read(subject, "note") == "source"
    assert shot.digests() == parts
    for clone in clones:
        await clone.handle.close()
        await clone.handle.kill()
    assert lab.processes() == [subject.pid]
    await lab.runs_on(subject)
    await lab.check(subject)


async def test_one_capture_follows_another_in_source_and_clone(lab: Lab) -> None:
    subject = await lab.boot()
    shots: list[Shot] = []
    for method in (STREAM, BACKGROUND, HANDOVER, BACKGROUND, STREAM):
        await lab.write(subject, "note", f"capture {len(shots)}")
        shots.append(await lab.capture(subject, lab.offered(method)))
    for number, shot in enumerate(shots):
        clone = await lab.restore(shot, f"clone{number}")
        await clone.handle.resume()
        assert await lab.read(clone, "note") == f"capture {number}"
        await lab.check(clone)
        if number == 2:
            await lab.write(clone, "note", "a clone's")
            again = await lab.restore(await lab.capture(clone, lab.offered(BACKGROUND)), "clone-of-clone")
            await again.handle.resume()
            assert await lab.read(again, "note") == "a clone's"
            await lab.check(again)
            await again.handle.pause()
        await clone.handle.pause()  # leaves the processor to the next one


@every_method
async def test_the_nics_go_before_the_pause(lab: Lab, method: CaptureMethod) -> None:
    subject = await lab.boot()
    await subject.handle.plug(make_nic(), (), None)

    async def unplug() -> None:
        assert await subject.handle.state() is MachineState.RUNNING
        await subject.handle.unplug("nic0", 30.0)

    shot = await lab.capture(subject, method, before_pause=unplug)
    assert await subject.handle.nics() == ()
    await subject.handle.plug(make_nic(), (), None)
    clone = await lab.restore(shot, "clone")
    assert await clone.handle.nics() == ()
    await clone.handle.resume()
    await clone.handle.plug(make_nic(mac="02:00:00:00:00:02"), (), None)
    assert await clone.handle.nics() == ("nic0",)


async def test_a_damaged_device_state_starts_nothing(lab: Lab) -> None:
    subject = await lab.boot()
    shot = await lab.capture(subject, STREAM)
    whole = shot.plan.device_state.read_bytes()
    shot.plan.device_state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LivecloneError):
        await lab.restore(shot, "clone")
    assert lab.processes() == [subject.pid]


async def test_another_hypervisors_snapshot_is_refused(lab: Lab) -> None:
    subject = await lab.boot()
    shot = await lab.capture(subject, STREAM)
    foreign = Shot(shot.plan, shot.captured, shot.hardware.replace(hypervisor=f"{lab.name} 0.1.0"))
    with pytest.raises(Unsupported) as caught:
        await lab.restore(foreign, "clone")
    assert caught.value.code == "other-hypervisor"
    assert lab.processes() == [subject.pid]


# A capture that fails


async def _refuse() -> None:
    raise TimedOut("the guest does not let go of nic0", code="unplug-deadline")


@every_method
async def test_a_failed_capture_leaves_the_source_as_it_was(lab: Lab, method: CaptureMethod) -> None:
    subject = await lab.boot()
    pid = subject.pid

    async def unplug() -> None:
        await subject.handle.unplug("nic0", 30.0)

    parts = ("device_state", "next_disk") if method is HANDOVER else ("device_state", "next_disk", "memory")
    failures: list[dict[str, Any]] = [{part: Path("/proc/missing") / part} for part in parts]
    for changes in ({"before_pause": _refuse}, *failures):
        await subject.handle.plug(make_nic(), (), None)
        with pytest.raises(LivecloneError):
            await lab.capture(subject, method, **{"before_pause": unplug} | changes)
        assert lab.processes() == [pid], changes
        assert await subject.handle.state() is MachineState.RUNNING
        # before_pause is where the engine unplugs: a NIC that it did not get to is still there
        if "before_pause" in changes:
            assert await subject.handle.nics() == ("nic0",)
        for nic in await subject.handle.nics():
            await subject.handle.unplug(nic, 30.0)
        await lab.runs_on(subject)
    await _is_whole(lab, subject, method)


@every_method
async def test_a_step_that_cannot_be_noted_ends_the_capture_without_harm(
    lab: Lab, method: CaptureMethod
) -> None:
    """The disk on which the journal is may be full at any step, also when the successor has the state already."""
    subject = await lab.boot()
    pid = subject.pid
    passed: list[str] = []
    await lab.capture(await lab.boot("other"), method, note=lambda step, **facts: passed.append(step))
    # Past its point of no return a capture can only go on: what follows "committing" is not for notes to stop.
    for failing in [step for step in passed if step != "retired"]:

        def note(step: str, failing: str = failing, **facts: Any) -> None:
            if step == failing:
                raise StoreError("no space left on device", code="disk-full")

        with pytest.raises(StoreError):
            await lab.capture(subject, method, note=note)
        assert await subject.handle.state() is MachineState.RUNNING, failing
        await lab.runs_on(subject)
        assert pid in lab.processes() and len(lab.processes()) == 2, failing
    await _is_whole(lab, subject, method)


# At each, the next command to the hypervisor is on its way when it is given up: it may be carried out or not.
@pytest.mark.parametrize(
    "point",
    ["handover.committing", "background.paused", "background.streamed", "stream.paused", "stream.resumed"],
)
async def test_a_capture_that_is_cancelled_leaves_the_source_as_it_was(
    lab: Lab, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = CaptureMethod(point.partition(".")[0])
    subject = await lab.boot()
    pid = subject.pid
    capturing = asyncio.create_task(lab.capture(subject, method))
    monkeypatch.setattr(trace, "at", lambda here: capturing.cancel() if here == point else None)
    with pytest.raises(asyncio.CancelledError):
        await capturing
    monkeypatch.undo()
    assert lab.processes() == [pid]
    assert await subject.handle.state() is MachineState.RUNNING
    await lab.runs_on(subject)
    await _is_whole(lab, subject, method)


async def _is_whole(lab: Lab, subject: Subject, method: CaptureMethod) -> None:
    """The machine can be captured now, and its clone has everything that it wrote."""
    await lab.write(subject, "note", "after the failure")
    shot = await lab.capture(subject, method)
    clone = await lab.restore(shot, "clone")
    await clone.handle.resume()
    await lab.check(clone)
    assert await lab.read(clone, "note") == "after the failure"


# A capture whose process is killed


def test_all_drivers_name_the_same_points() -> None:
    assert points_of("fake") == points_of("qemu")


@every_method
async def test_a_capture_passes_the_points_of_its_method(
    lab: Lab, children: Children, method: CaptureMethod, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    ended, *_ = await _capture_in_child(lab, children, method, {"LIVECLONE_TRACE": str(trace)})
    assert (ended.signal, ended.error) == (0, {})
    passed = trace.read_text().split()
    assert set(passed) == {point for point in points_of(lab.name) if point.startswith(method.value)}


# One point behind each note; tests/unit/engine kills at all of them.
@pytest.mark.parametrize(
    "point",
    [
        "handover.successor",
        "handover.paused",
        "handover.loaded",
        "handover.resumed",
        "handover.retired",
        "background.paused",
        "background.frozen",
        "background.resumed",
        "stream.frozen",
    ],
)
async def test_a_capture_that_was_killed_is_settled(lab: Lab, children: Children, point: str) -> None:
    method = CaptureMethod(point.partition(".")[0])
    env = {"LIVECLONE_FAULT": f"{point}=kill"}
    ended, subject, plan, facts = await _capture_in_child(lab, children, method, env)
    assert ended.signal == 9
    found = await lab.driver.recover(subject.machine, subject.folder, facts)
    assert lab.processes() == [found.process.pid]
    disk = plan.next_disk if found.on_next_disk else Path(subject.machine.disk)
    subject.machine = subject.machine.replace(process=found.process, memory=found.memory, disk=str(disk))
    # Settling may be interrupted too: whoever comes next finds nothing to do.
    again = await lab.driver.recover(subject.machine, subject.folder, {})
    assert again.process == found.process
    subject.handle = await lab.driver.open(subject.machine, subject.folder)
    assert await subject.handle.state() is MachineState.RUNNING
    await lab.runs_on(subject)
    await lab.check(subject)
    await _is_whole(lab, subject, lab.offered(BACKGROUND))


@with_handover
async def test_of_a_killed_handover_whose_old_process_is_gone_the_new_one_goes_on(
    lab: Lab, children: Children
) -> None:
    env = {"LIVECLONE_FAULT": "handover.loaded=kill"}
    ended, subject, plan, facts = await _capture_in_child(lab, children, HANDOVER, env)
    assert ended.signal == 9
    await process.end(subject.handle.process)
    found = await lab.driver.recover(subject.machine, subject.folder, facts)
    assert found.on_next_disk
    assert lab.processes() == [found.process.pid] != [subject.pid]
    subject.machine = subject.machine.replace(
        process=found.process, memory=found.memory, disk=str(plan.next_disk)
    )
    subject.handle = await lab.driver.open(subject.machine, subject.folder)
    assert await subject.handle.state() is MachineState.RUNNING
    await lab.runs_on(subject)
    await lab.check(subject)


async def test_a_killed_capture_of_a_machine_that_died_too_is_told(lab: Lab, children: Children) -> None:
    method = lab.offered(HANDOVER)
    env = {"LIVECLONE_FAULT": "handover.successor=kill" if method is HANDOVER else "stream.paused=kill"}
    ended, subject, _, facts = await _capture_in_child(lab, children, method, env)
    assert ended.signal == 9
    for pid in lab.processes():
        await process.end(process.ref(pid))
    with pytest.raises(NotFound) as caught:
        await lab.driver.recover(subject.machine, subject.folder, facts)
    assert caught.value.code == "not-running"
    assert not list(subject.folder.glob("run*"))


async def _capture_in_child(lab: Lab, children: Children, method: CaptureMethod, env: dict[str, str]) -> Any:
    subject = await lab.boot()
    await lab.runs_on(subject)
    await subject.handle.close()
    plan = lab.plan(subject, method)
    notes = lab.home / "notes"
    job = f"{capture_in_child.__module__}:{capture_in_child.__name__}"
    machine = msgspec.to_builtins(subject.machine)
    ended = children.run(job, lab.name, lab.home, machine, plan_for_child(plan), notes, env=env)
    facts = json.loads(notes.read_text()) if notes.exists() else {}
    return ended, subject, plan, {"memory": str(plan.memory)} | facts
