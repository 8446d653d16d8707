"""What goes wrong with live snapshots, as exceptions of Nova's kind: with a message that the user may see."""

from __future__ import annotations

from nova import exception


class LiveSnapshotNotPossible(exception.NovaException):
    """Something about the instance, or its host, bars a live snapshot; nothing was changed."""

    msg_fmt = "Instance %(instance_uuid)s cannot be live-snapshotted: %(reasons)s."
    code = 409


class LiveSnapshotNotSupported(exception.NovaException):
    """The virt driver of the instance's host has no live snapshots."""

    msg_fmt = "The virt driver %(driver)s has no live snapshots."


class CaptureNotImplemented(exception.NovaException):
    """The step that reads memory, processor and disks of the guest has not been written yet."""

    msg_fmt = "This version of liveclone-nova cannot capture a guest of libvirt yet."
