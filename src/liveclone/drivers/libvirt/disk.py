"""The disk of a running domain: what libvirt put on top for a capture is written back and taken off."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirt

from ...errors import HypervisorError, StoreError
from ...formats import domain_xml, qcow2
from ...host import files
from ..base import DiskCapture
from .connection import Connection
from .link import Event

COMMIT_DEADLINE_S = 300.0
_JOB = libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2
_READY, _FAILED = libvirt.VIR_DOMAIN_BLOCK_JOB_READY, libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED
_CANCELED = libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED


def find_target(domain: domain_xml.Domain, path: Path) -> str:
    """Return the target ("vda") of the disk whose top layer is `path`; empty if it has none."""
    return next((disk.target for disk in domain.disks if disk.path and Path(disk.path) == path), "")


async def take_off(connection: Connection, layer: Path) -> None:
    """Undo the layer that a capture put on, if it is there: what it holds goes into the one below. The machine may run.

    Shallow: without that the layer is written into the lowest one of the chain, which others share. The file goes: were
    it found when QEMU has died, what it holds would hide what the guest wrote since.

    Raises:
        HypervisorError: it could not be written; the machine is still on `layer`.
    """
    target = find_target(await connection.read(), layer)
    if target:
        await _commit(connection, target)
    layer.unlink(missing_ok=True)


def copy(disk: DiskCapture, tell: Callable[[str, float | None], None]) -> None:
    """Copy a disk that nobody writes just now; what it stands on is named from the root on, so it may lie anywhere.

    Raises:
        StoreError: no room; no target is left. Corrupt: its header cannot be read.
    """
    source, target = disk.present, disk.frozen
    files.copy_sparse(source, target, lambda fraction: tell(f"copying {disk.target}", fraction))
    if disk.format != "qcow2":
        return
    with source.open("rb") as file:
        header = qcow2.parse_header(file.read(qcow2.HEADER_BYTES))
    if header.backing and not Path(header.backing).is_absolute():
        below = source.parent / header.backing
        command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", header.backing_format or "raw"]
        done = subprocess.run(
            [*command, "-b", str(below), str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            target.unlink()
            raise StoreError(
                "the copy of a disk cannot be told what it stands on",
                code="no-rebase",
                tried="copying a disk",
                on=str(source),
                seen=done.stderr.strip(),
                source_state="running",
                next_step="see whether qemu-img works",
            )


async def _commit(connection: Connection, target: str) -> None:
    what = "committing the disk layer"

    def ended(event: Event) -> bool:
        disk, _kind, status = event.facts
        return disk == target and status in (_READY, _FAILED, _CANCELED)

    async with connection.link.watch(connection.domain, _JOB) as watch:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW | libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        await connection.call(what, connection.domain.blockCommit, target, None, None, 0, flags)
        event = await watch.until(ended, what, COMMIT_DEADLINE_S)
    if event.facts[2] != _READY:
        raise HypervisorError(
            f"libvirt could not write a disk layer of {connection.name} into the one below",
            code="commit-failed",
            tried=what,
            on=connection.name,
            seen=f"the block job of {target} failed",
            source_state="running, on the layer",
            next_step=f"virsh domblkinfo {connection.name} {target}, and room on the disk",
        )
    await connection.call(
        what, connection.domain.blockJobAbort, target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
    )
