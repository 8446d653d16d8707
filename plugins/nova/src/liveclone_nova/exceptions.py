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


class LiveSnapshotFailed(exception.NovaException):
    """A live snapshot could not be taken; the instance runs as before. What only operators need is in the log."""

    msg_fmt = "The live snapshot failed: %(reason)s."
