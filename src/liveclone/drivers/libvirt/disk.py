"""The disk of a running domain: what libvirt put on top for a capture is written back and taken off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirt

from ...errors import HypervisorError, StoreError
from ...formats import domain_rewrite, domain_xml, qcow2
from ...host import disk_layers, files
from ...model.machine import ProcessRef
from ..base import DiskCapture
from . import registry
from .connection import Connection
from .link import Event, Link
from .registry import DomainRef

COMMIT_DEADLINE_S = 300.0
_JOB = libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2
_READY, _FAILED = libvirt.VIR_DOMAIN_BLOCK_JOB_READY, libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED
_COMPLETED = libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED
_CANCELED = libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED


def find_target(domain: domain_xml.Domain, path: Path) -> str:
    """Return the target ("vda") of the disk whose top layer is `path`; empty if it has none."""
    return next((disk.target for disk in domain.disks if disk.path and Path(disk.path) == path), "")


async def take_off(connection: Connection, layer: Path) -> None:
    """Undo the layer that a capture put on, if it is there: what it holds goes into the one below. The machine may run.

    Shallow: without that the layer is written into the lowest one of the chain, which others share. The file goes: were
    it found when QEMU has died, what it holds would hide what the guest wrote since. Where somebody else has put a layer
    on it meanwhile, that one stands on what ours stood on then.

    Raises:
        HypervisorError: it could not be written, or libvirt does not know that QEMU has it. The machine is still on
            `layer`, and the file stays.
    """
    domain = await connection.read()
    if target := find_target(domain, layer):
        await _commit(connection, target)
    elif target := _find_above(domain, layer):
        await _commit(connection, target, layer)
    if holds(connection.process, layer):
        raise HypervisorError(
            f"{connection.name} writes a disk layer that libvirt does not know of",
            code="unknown-layer",
            tried="taking a disk layer off",
            on=connection.name,
            seen=str(layer),
            source_state="running, on the layer",
            next_step=f"shut {connection.name} down, and qemu-img commit {layer}",
        )
    layer.unlink(missing_ok=True)


def holds(ref: ProcessRef, path: Path) -> bool:
    """Tell whether a process has a file open."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return False
    for fd in Path(f"/proc/{ref.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(fd.stat(), wanted):
                return True
    return False


def _find_above(domain: domain_xml.Domain, layer: Path) -> str:
    """Return the target of the disk that has `layer` somewhere below its top; empty if it has none."""
    for disk in domain.disks if layer.exists() else ():
        if disk.path and disk.format == "qcow2" and layer in disk_layers.find_layers(Path(disk.path))[1:]:
            return disk.target
    return ""


async def put_back(link: Link, ref: DomainRef, layer: Path, present: str) -> None:
    """Undo the layer that a capture put on a domain that has ended since; it starts from the disk it had then.

    Its definition says whether its guest wrote the layer. Done twice it does no harm. Of a domain that libvirt does not
    have any more nothing is known, so nothing is touched.

    Args:
        present: the name that the disk had then; empty: that by which the layer stands on it, which of ours is another.

    Raises:
        NotFound: libvirt does not have the domain, or it has gone to another host, which writes the layer. StoreError: it
            could not be written. The layer is still there.
    """
    domain = await registry.find(link, ref)
    await registry.check_here(link, ref, domain)
    xml = await link.call("reading its definition", domain.XMLDesc, libvirt.VIR_DOMAIN_XML_INACTIVE)
    target = find_target(domain_xml.parse_domain(xml), layer)
    if target and layer.exists():
        with layer.open("rb") as file:
            header = qcow2.parse_header(file.read(qcow2.HEADER_BYTES))
        below = present or str(layer.parent / header.backing)
        await asyncio.to_thread(run_qemu_img, "commit", "-q", "-d", "-f", "qcow2", str(layer), on=layer)
        changed = domain_rewrite.with_disk(xml, target, below, header.backing_format or "raw")
        await link.call("defining", link.connection.defineXML, changed)
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
        form = header.backing_format or "raw"
        try:
            run_qemu_img("rebase", "-u", "-f", "qcow2", "-F", form, "-b", str(below), str(target), on=source)
        except StoreError:
            target.unlink()
            raise


def run_qemu_img(command: str, *arguments: str, on: Path) -> None:
    """Let qemu-img do something; raises StoreError."""
    done = subprocess.run(["qemu-img", command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(
            f"qemu-img {command} failed",
            code="qemu-img",
            tried=f"qemu-img {command}",
            on=str(on),
            seen=done.stderr.strip(),
            next_step=f"df -h {on.parent}",
        )


async def _commit(connection: Connection, target: str, inner: Path | None = None) -> None:
    """Write the top layer of a disk, or an inner one, into the one below, which then takes its place."""
    what = "committing the disk layer"
    wanted = _READY if inner is None else _COMPLETED

    def ended(event: Event) -> bool:
        disk, _kind, status = event.facts
        return disk == target and status in (wanted, _FAILED, _CANCELED)

    async with connection.link.watch(connection.domain, _JOB) as watch:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if inner is None else 0
        top = str(inner) if inner is not None else None
        await connection.call(what, connection.domain.blockCommit, target, None, top, 0, flags)
        event = await watch.until(ended, what, COMMIT_DEADLINE_S)
    if event.facts[2] != wanted:
        raise HypervisorError(
            f"libvirt could not write a disk layer of {connection.name} into the one below",
            code="commit-failed",
            tried=what,
            on=connection.name,
            seen=f"the block job of {target} failed",
            source_state="running, on the layer",
            next_step=f"virsh domblkinfo {connection.name} {target}, and room on the disk",
        )
    if inner is None:
        await connection.call(
            what, connection.domain.blockJobAbort, target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        )
