"""The disks of a machine whose hypervisor has names for them. Where there are none a machine has one, written qcow2."""

from __future__ import annotations

from .base import Value
from .part import Part


class Disk(Value, frozen=True, kw_only=True):
    """A disk that a machine writes: `target` as libvirt names it ("vda"), `path` of the topmost layer."""

    target: str
    path: str
    format: str  # "qcow2", "raw"
    size_bytes: int  # as the guest sees it


class DiskPart(Value, frozen=True, kw_only=True):
    """The same disk in a snapshot, which never changes."""

    target: str
    part: Part
    format: str
    size_bytes: int
