"""Make one file of a disk's layers: what the guest would read, and nothing of what lies hidden under it."""

from __future__ import annotations

from pathlib import Path

from . import command, files

_DEADLINE_S = 2 * 3600.0


async def flatten(disk: Path, target: Path, form: str = "qcow2") -> None:
    """Write the disk whose top layer is `disk`, a qcow2 or "raw", to `target`: qcow2 without a backing file, durable.

    What the guest sees is copied, cluster by cluster; zeros take no room. What an upper layer covers, and what no table
    names any more, stays behind.

    Raises:
        StoreError: a layer cannot be read, or there is no room. Unsupported: qemu-img is not there.
        TimedOut: it took two hours. `target` may be there in each case.
    """
    await command.run(
        ["qemu-img", "convert", "-f", form, "-O", "qcow2", str(disk), str(target)],
        deadline_s=_DEADLINE_S,
        package="qemu-utils",
    )
    files.sync_file(target)
