"""A live snapshot as it stands in its manifest. Nothing in it changes after `ready`, but `state`, digests and `hot`."""

from __future__ import annotations

import datetime
import enum

from .base import Value
from .disk import DiskPart
from .identity import ItemReport
from .machine import Boot, Hardware
from .network import NetworkKind
from .part import Part
from .scan import Scan
from .scrub import Scrub

__all__ = ["Capture", "CaptureMethod", "HotImage", "Part", "Snapshot", "SnapshotState"]


class CaptureMethod(enum.Enum):
    """How the memory was captured (DESIGN: 'How memory is captured')."""

    HANDOVER = "handover"
    BACKGROUND = "background"
    STREAM = "stream"


class SnapshotState(enum.Enum):
    READY = "ready"  # clones can start; the durable copy is being made
    SEALED = "sealed"  # every part is on durable storage with its digest


class HotImage(Value, frozen=True, kw_only=True):
    """The memory image on tmpfs. The stamp shows whether the file was written since it became immutable."""

    path: str
    inode: int
    mtime_ns: int
    ctime_ns: int


class Capture(Value, frozen=True, kw_only=True):
    """What the pause cost, by the hypervisor's own clock and by step."""

    method: CaptureMethod
    pause_ns: int  # from the STOP event to the RESUME event
    until_clonable_ns: int  # from the request to the moment clones could start
    steps_ms: dict[str, float] = {}


class Snapshot(Value, frozen=True, kw_only=True):
    """The manifest of a live snapshot, `snapshots/ID/manifest.json`."""

    id: str
    name: str
    created_at: datetime.datetime
    driver: str
    state: SnapshotState
    source: str  # machine id
    source_name: str
    source_generation: str = ""  # uuid of the generation that the copied memory holds
    hardware: Hardware
    devices: tuple[str, ...]  # what the device state describes, in order
    ignore_shared: bool  # the device state was saved with QEMU's x-ignore-shared and loads only so
    image: str
    boot: Boot
    network: NetworkKind
    memory: Part
    hot: HotImage | None = None
    device_state: Part
    disk: Part
    disk_bytes: int  # virtual size
    disk_format: str = "qcow2"
    disks: tuple[DiskPart, ...] = ()  # all of them, `disk` first, where the hypervisor has names for them
    addresses: tuple[str, ...] = ()  # of the source, where they are its guest's own affair
    nics: tuple[str, ...] = ()  # ids of the source's NICs, where they are the hypervisor's
    layers: tuple[str, ...] = ()  # snapshots whose frozen layers lie under `disk`, nearest first
    items: tuple[ItemReport, ...] = ()  # the source's identity at capture
    scan: Scan | None = None  # what in the source was not safe to copy
    warnings: tuple[
        str, ...
    ] = ()  # what went wrong with the source's applications and harms neither it nor clones
    capture: Capture
    scrub: Scrub | None = None  # of a snapshot that was scrubbed: that nothing of what was taken out is in it
