"""File systems and disks from the network: several machines would write to them as if they were one."""

from __future__ import annotations

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "glusterfs",
    "lustre",
    "9p",
    "virtiofs",
    "afs",
    "gfs2",
    "ocfs2",
)
_FUSE = ("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.ceph-fuse")


class Mounts(Check):
    name = "mounts"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for line in guest.read("/proc/mounts").splitlines():
            device, where, kind, options = line.split()[:4]
            if kind in _NETWORK + _FUSE:
                writes = "ro" not in options.split(",")
                yield finding(
                    where,
                    f"{kind} from {device}, {'for writing' if writes else 'read-only'}",
                    "refuse" if writes else "accept",
                    "unmount it before the snapshot: its server takes a clone for the same client"
                    if writes
                    else "a clone has to mount it anew",
                )
        for session in guest.find("/sys/class/iscsi_session/session*"):
            yield finding(
                session,
                "a disk over iSCSI",
                "refuse",
                "log out of it before the snapshot: both would write to it",
            )


CHECK = Mounts
