"""Values: frozen, strict, and the same from bytes to values and back."""

from __future__ import annotations

import datetime
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Corrupt
from liveclone.model import base
from liveclone.model.identity import Evidence, Finding, Generation, ItemReport, ItemStatus
from liveclone.model.image import Image
from liveclone.model.machine import Boot, Hardware, Machine, MachineState, Memory, MemorySource, ProcessRef
from liveclone.model.network import NetworkKind, Nic, Port
from liveclone.model.snapshot import Capture, CaptureMethod, HotImage, Part, Snapshot, SnapshotState

NOW = datetime.datetime(2026, 11, 22, 17, 0, 0, 123456, tzinfo=datetime.UTC)
HARDWARE = Hardware(ram_bytes=1 << 29, machine_type="pc-q35-10.0", hypervisor="qemu 10.0.2")

MACHINE = Machine(
    id="0123456789ab",
    name="web",
    created_at=NOW,
    driver="qemu",
    hardware=HARDWARE,
    image="debian",
    boot=Boot(kernel="/k", initrd="/i", cmdline="quiet"),
    disk="/d.qcow2",
    disk_bytes=1 << 30,
    layers=("a", "b"),
    memory=Memory(path="/m", source=MemorySource.PRIVATE_HOT),
    process=ProcessRef(pid=1, start_ticks=2, boot_id="b"),
    network=NetworkKind.USER,
    nics=(Nic(id="nic0", kind=NetworkKind.USER, mac="02:00:00:00:00:01", address="10.213.0.7/16"),),
    ports=(Port(host_port=8080, guest_port=80),),
    generation=Generation(counter=1, uuid="u"),
    labels={"a": "b"},
)
SNAPSHOT = Snapshot(
    id="0123456789ab",
    name="warm",
    created_at=NOW,
    driver="qemu",
    state=SnapshotState.READY,
    source="0123456789ab",
    source_name="web",
    hardware=HARDWARE,
    devices=("cpu",),
    ignore_shared=True,
    image="debian",
    boot=Boot(),
    network=NetworkKind.NONE,
    memory=Part(file="memory", size_bytes=1),
    hot=HotImage(path="/h", inode=1, mtime_ns=2, ctime_ns=3),
    device_state=Part(file="state", size_bytes=1, digest="d"),
    disk=Part(file="disk.qcow2", size_bytes=1),
    disk_bytes=1,
    items=(ItemReport(item="rng", required=True, status=ItemStatus.PRESENT),),
    capture=Capture(method=CaptureMethod.HANDOVER, pause_ns=1, until_clonable_ns=2, steps_ms={"a": 0.5}),
)
EVIDENCE = Evidence(
    machine="m",
    name="web",
    snapshot="s",
    generation=Generation(counter=1, uuid="u"),
    items=(ItemReport(item="rng", required=True, status=ItemStatus.CHANGED, details={"a": "b"}),),
    findings=(Finding(item="rng", reason="r"),),
    at=NOW,
)
IMAGE = Image(name="debian", created_at=NOW, disk="/d", disk_bytes=1, boot=Boot(), packages=("ssh",))


@pytest.mark.parametrize(
    "value", [MACHINE, SNAPSHOT, EVIDENCE, IMAGE], ids=lambda value: type(value).__name__
)
def test_bytes_and_back(value: base.Value) -> None:
    data = base.encode(value)
    assert data.endswith(b"}\n")
    assert base.decode(data, type(value), "test") == value
    assert json.loads(data) == json.loads(json.dumps(base.builtins(value)))
    assert json.loads(data).keys() == {field.name for field in msgspec.structs.fields(value)}


def test_values_are_frozen_and_replaced_as_copies() -> None:
    with pytest.raises(AttributeError):
        MACHINE.name = "other"  # type: ignore[misc]
    other = MACHINE.replace(name="other")
    assert (MACHINE.name, other.name) == ("web", "other")
    assert other.replace(name="web") == MACHINE


def test_a_value_of_a_later_version_is_read_and_one_that_lacks_a_field_is_not() -> None:
    fields: dict[str, Any] = base.builtins(MACHINE)
    assert base.decode(json.dumps(fields | {"colour": "red"}).encode(), Machine, "test") == MACHINE
    del fields["disk"]
    with pytest.raises(Corrupt) as caught:
        base.decode(json.dumps(fields).encode(), Machine, "machines/x/manifest.json")
    error = caught.value
    assert (error.code, error.on) == ("bad-manifest", "machines/x/manifest.json")
    assert "disk" in error.seen and error.tried and error.next_step


@given(data=st.binary(max_size=100))
def test_garbage_is_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Corrupt):
        base.decode(data, Machine, "test")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "carrier-pigeon"),
        ("disk_bytes", "many"),
        ("layers", "a"),
        ("created_at", "yesterday"),
        ("process", 7),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    fields = base.builtins(MACHINE) | {field: value}
    with pytest.raises(Corrupt) as caught:
        base.decode(json.dumps(fields).encode(), Machine, "test")
    assert field in caught.value.seen


def test_times_are_in_utc() -> None:
    assert base.now().utcoffset() == datetime.timedelta(0)
    assert json.loads(base.encode(IMAGE))["created_at"] == "2026-11-22T17:00:00.123456Z"


def test_enums_answer_questions() -> None:
    assert [state for state in MachineState if not state.has_process] == [MachineState.STOPPED]
    assert [kind for kind in NetworkKind if kind.keeps_connections] == [
        NetworkKind.BRIDGE,
        NetworkKind.LIBVIRT,
    ]
    assert MACHINE.nics[0].ip == "10.213.0.7"
    assert not EVIDENCE.verified
    assert EVIDENCE.replace(findings=()).verified
