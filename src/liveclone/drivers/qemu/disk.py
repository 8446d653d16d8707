"""The disk of a running QEMU: put a new layer on top at an instant, and take it off again."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Any

from ...errors import HypervisorError, LivecloneError
from ...formats import qcow2
from . import argv
from .session import Session

COMMIT_DEADLINE_S = 300.0


def read_chain(top: Path) -> list[tuple[Path, str]]:
    """Return the layers of a disk with their formats, from `top` down, as the headers name them.

    It ends above a layer that is no plain file of a named format: that is QEMU's to find. An unreadable header ends it
    too, and QEMU says what is wrong.
    """
    chain = [(top, "qcow2")]
    while chain[-1][1] == "qcow2":
        path = chain[-1][0]
        try:
            with path.open("rb") as file:
                header = qcow2.parse_header(file.read(qcow2.HEADER_BYTES))
        except (OSError, LivecloneError):
            break
        if header.backing_format not in ("qcow2", "raw") or ":" in header.backing.partition("/")[0]:
            break
        chain.append((path.parent / header.backing, header.backing_format))
    return chain


async def sync(path: Path) -> None:
    """Write what the guest has not flushed to the file, so that the pause need not (it ends with a flush)."""

    def work() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    await asyncio.to_thread(work)


def new_node() -> str:
    """Return the name of a layer's node that is to be."""
    return f"layer-{secrets.token_hex(4)}"


async def add_layer(session: Session, path: Path, node: str) -> None:
    """Open the empty overlay at `path`, not yet in use, so that `freeze` needs one command."""
    await session.call("blockdev-add", **argv.disk_node([(path, "qcow2")], node), backing=None)


async def freeze(session: Session, node: str, below: str) -> None:
    """Make `node` the layer that the guest writes instead of `below`, which nobody writes from now on."""
    await session.call("blockdev-snapshot", node=below, overlay=node)


async def thaw(session: Session, node: str, below: str) -> None:
    """Undo `freeze`: write what `node` holds into the layer `below` and take it off. The machine may run.

    The base must be named: without it QEMU commits into the lowest layer of the chain, which others share.

    Raises:
        HypervisorError: it could not be written; the machine is still on `node`, which stands on `below`.
    """
    job = f"thaw-{node}"
    what = "committing the disk layer"

    def is_ours(event: dict[str, Any]) -> bool:
        return bool(event["data"]["device"] == job)

    async with session.watch("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED") as watch:
        await session.call("block-commit", job_id=job, device=node, base_node=below)
        event = await watch.until(is_ours, what, COMMIT_DEADLINE_S)
        if event["event"] == "BLOCK_JOB_READY":
            await session.call("job-complete", id=job)
            event = await watch.until(is_ours, what, COMMIT_DEADLINE_S)
    if "error" in event["data"]:
        raise HypervisorError(
            f"QEMU could not write a disk layer of {session.name} into the one below",
            code="commit-failed",
            tried=what,
            on=session.name,
            seen=event["data"]["error"],
            next_step=f"liveclone logs {session.name} --qemu",
        )
    await remove_layer(session, node)


async def take_off(session: Session, path: Path, node: str, below: str) -> None:
    """Undo `add_layer` and `freeze`, as far as they were carried out: a command that was cancelled may have been.

    The file `path` goes: were it found when QEMU has died, what it holds would hide what the guest wrote since.
    """
    if await top(session) == node:
        await thaw(session, node, below)
    elif any(
        found["node-name"] == node for found in await session.call("query-named-block-nodes", flat=True)
    ):
        await remove_layer(session, node)
    path.unlink(missing_ok=True)


async def remove_layer(session: Session, node: str) -> None:
    """Close a layer that is not in use."""
    await session.call("blockdev-del", node_name=node)


async def top(session: Session) -> str:
    """Return the node that the guest's disk writes."""
    for device in await session.call("query-block"):
        if "/vda/" in device["qdev"] or device["qdev"] == "vda":
            return str(device["inserted"]["node-name"])
    return argv.DISK
