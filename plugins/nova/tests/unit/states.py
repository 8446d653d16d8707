"""A small state: a description, and the bytes of a state image that it is sealed in."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from liveclone.model.identity import Evidence, Generation, ItemReport, ItemStatus
from liveclone_nova import state_file
from liveclone_nova.seal import Description, Identity, Part

KEY, OLD_KEY, FOREIGN_KEY = (bytes([letter]) * 32 for letter in b"kof")
DISK, STATE, OTHER = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "789")

PAGE = 4096
RAM_BYTES = 4 << 20
WHEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
PAGES = {0: b"first", 17: b"second", RAM_BYTES // PAGE - 1: b"last"}


def describe(device_state: Part, memory: Part, **changes: Any) -> Description:
    return Description(
        **{
            "disk_image": DISK,
            "state_image": STATE,
            "disk": Part(size_bytes=5, digest="d15c"),
            "device_state": device_state,
            "memory": memory,
            "ram_bytes": RAM_BYTES,
            "memory_mb": 4,
            "vcpus": 1,
            "disk_bytes": 1 << 30,
            "kind": "kvm",
            "hypervisor": "libvirt 11.3.0, qemu 10.0.2",
            "machine_type": "pc-q35-10.0",
            "cpu": "host-model",
            "host_cpu": "Skylake-Server",
            "source": "source",
            "project": "project",
            "taken_at": WHEN,
            **changes,
        }
    )


def make_evidence(machine: str, **changes: Any) -> Evidence:
    """Return evidence of a machine whose host name is new."""
    item = ItemReport(
        item="hostname", required=True, status=ItemStatus.CHANGED, before="a" * 64, after="b" * 64
    )
    generation = Generation(counter=1, uuid=machine)
    made = Evidence(
        machine=machine, name=machine, snapshot=DISK, generation=generation, items=(item,), at=WHEN
    )
    changed: Evidence = made.replace(**changes)
    return changed


def make_identity(count: int = 1) -> Identity:
    """Return what clones are compared with, of so many items."""
    items = (
        ItemReport(item=f"item-{number}", required=True, status=ItemStatus.PRESENT, before="a" * 64)
        for number in range(count)
    )
    return Identity(key="00" * 32, items=tuple(items), renewed=make_evidence("source"))


def make_memory(path: Path) -> Path:
    """Write a memory image that is nearly all holes."""
    with path.open("wb") as file:
        file.truncate(RAM_BYTES)
        for number, text in PAGES.items():
            file.seek(number * PAGE)
            file.write(text.ljust(PAGE, b"."))
    return path


def make_state(folder: Path, key: bytes = KEY, **changes: Any) -> bytes:
    """Return a whole state image."""
    folder.mkdir()
    (folder / "device").write_bytes(b"device state" * 1000)
    memory = make_memory(folder / "ram")

    def finish(device_state: Part, packed: Part) -> Description:
        return describe(device_state, packed, **changes)

    state_file.write(folder / "image", folder / "device", memory, key, finish)
    return (folder / "image").read_bytes()
