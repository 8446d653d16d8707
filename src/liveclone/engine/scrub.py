"""Take a guest's secrets out before its capture, keep them meanwhile, and bring them back, whatever happens.

    stop units ── read ── kept on our disk, durable ── removed in the guest ── agent begins anew ── memory and disk cleaned
                          machines/ID/scrubbed.json                                                      │
    deleted    <──────────── units start <──────────── all files back in the guest, synced <────────── capture

`scrubbed.json` (0600) is there as long as anything is missing in the guest. Whoever finds it brings back what is in it: the
snapshot itself, its undo, `repair` and the next command after a death, and the next start of a machine that has stopped
meanwhile. It is deleted only after the guest has said that all of it is on its disk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

import msgspec

from .. import trace
from ..drivers.base import Handle
from ..errors import Conflict, GuestError, LivecloneError
from ..formats.needles import Secret, secrets_in
from ..host import files
from ..model import base
from ..model.base import Value
from ..model.machine import Machine
from . import agent as agents
from .agent import Agent
from .context import Context

FILE = "scrubbed.json"
# Units may take their time to stop and to start; a system with much free memory takes long to fill it, under emulation.
DEADLINE_S = 120.0
CLEAN_DEADLINE_S = 900.0  # 8 GiB of free blocks are written at some 50 MB/s, at the worst
_BATCH_BYTES = 1024 * 1024  # of content, in one call


class TakenFile(Value, frozen=True, kw_only=True):
    """A file as it was in the guest. `data` is base64."""

    path: str
    history: bool
    data: str
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    xattrs: dict[str, str] = {}

    @property
    def content(self) -> bytes:
        return base64.b64decode(self.data)


class Taken(Value, frozen=True, kw_only=True):
    """What was taken out of a guest, or is about to be."""

    files: tuple[TakenFile, ...] = ()
    units: tuple[str, ...] = ()

    def secrets(self) -> list[Secret]:
        """Return what the snapshot must not hold."""
        return [
            secret
            for file in self.files
            for secret in secrets_in(file.path, file.content, words=not file.history)
        ]


async def take_out(
    ctx: Context,
    machine: Machine,
    handle: Handle,
    agent: Agent,
    paths: tuple[str, ...],
    units: tuple[str, ...],
) -> Taken:
    """Take the secrets out of a guest; `put_back` is the undo, from the first moment on.

    Args:
        paths: files and folders of the guest that are secret, besides the well-known ones.
        units: its systemd units that are to stand still.

    Raises:
        GuestError, TimedOut: it cannot be done: no such file or unit, a file that cannot be written, too much.
        StoreError: no room for them on our disk; nothing was removed.
    """
    if is_due(ctx, machine):
        raise Conflict(
            f"secrets of {machine.name} that were taken out before are not back yet",
            code="not-back",
            tried="taking secrets out of the guest",
            on=machine.name,
            seen=str(_path(ctx, machine)),
            next_step=f"liveclone repair {machine.name}",
        )
    _keep(ctx, machine, Taken())
    trace.at("scrub.begun")
    ctx.progress("taking secrets out of the guest", None)
    answer = await agent.call("scrub_stop", {"units": list(units)}, deadline_s=DEADLINE_S, repeat=True)
    stopped = tuple(answer["units"])
    answer = await agent.call("scrub_read", {"paths": list(paths)}, deadline_s=DEADLINE_S)
    try:
        taken = Taken(files=msgspec.convert(answer["files"], tuple[TakenFile, ...]), units=stopped)
        digests = [
            {"path": one.path, "digest": hashlib.sha256(one.content).hexdigest()} for one in taken.files
        ]
    except (KeyError, msgspec.ValidationError, binascii.Error) as error:
        raise GuestError(
            f"the agent of {machine.name} hands its secrets over in a form that is not understood",
            code="bad-report",
            tried="reading the secrets",
            on=machine.name,
            seen=type(error).__name__,
            next_step="rebuild the image, so that its agent is of this version",
        ) from error
    _keep(ctx, machine, taken)
    trace.at("scrub.kept")
    await agent.call("scrub_remove", {"files": digests}, deadline_s=DEADLINE_S, repeat=True)
    trace.at("scrub.removed")
    ctx.progress("cleaning free memory and free blocks", None)
    await agent.call("renew", deadline_s=DEADLINE_S)
    async with agents.connect(handle, machine.name, "exec") as other:
        for port in (agent, other):
            await port.overwrite()
    await agent.call("scrub_clean", deadline_s=CLEAN_DEADLINE_S, repeat=True)
    return taken


def is_due(ctx: Context, machine: Machine) -> bool:
    """Tell whether something of this machine's guest lies with us."""
    return _path(ctx, machine).exists()


async def put_back(ctx: Context, machine: Machine, agent: Agent) -> tuple[str, ...]:
    """Bring back what was taken out, if anything was, and let the units start.

    Returns:
        A sentence for each file whose place another one had taken meanwhile.

    Raises:
        GuestError, TimedOut: it is not all back; what is not still lies with us, and can be asked for again.
    """
    path = _path(ctx, machine)
    if not path.exists():
        return ()
    taken = base.decode(path.read_bytes(), Taken, str(path))
    kept: list[str] = []
    try:
        for batch in _batches(taken.files):
            answer = await agent.call(
                "scrub_restore", {"files": base.builtins(batch)}, deadline_s=DEADLINE_S, repeat=True
            )
            kept += answer["kept"]
        await agent.call("scrub_start", {"units": list(taken.units)}, deadline_s=DEADLINE_S, repeat=True)
    except LivecloneError as error:
        error.next_step = f"liveclone repair {machine.name}: its secrets are kept until then"
        raise
    trace.at("scrub.back")
    forget(ctx, machine)
    return tuple(f"{name} was made anew meanwhile: that one is {name}.new" for name in kept)


def forget(ctx: Context, machine: Machine) -> None:
    """Overwrite and delete what is kept; the guest has it all."""
    path = _path(ctx, machine)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, bytes(os.fstat(fd).st_size), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    path.unlink()


def _keep(ctx: Context, machine: Machine, taken: Taken) -> None:
    files.write_atomic(_path(ctx, machine), base.encode(taken))


def _batches(taken: tuple[TakenFile, ...]) -> list[list[TakenFile]]:
    batches: list[list[TakenFile]] = []
    size = _BATCH_BYTES
    for one in taken:
        if size + len(one.data) > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += len(one.data)
    return batches


def _path(ctx: Context, machine: Machine) -> Path:
    return ctx.layout.machine(machine.id) / FILE
