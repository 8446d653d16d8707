"""Start a fake machine's process whose sockets already listen, and find it again.

machines/ID/
  run -> run.7c1f          the process that is the machine now
  run.7c1f/{control,agent,exec,console}   and the guest's files while it runs: root/ programs/
  run.93ab/...             a successor during a handover; `adopt` moves the link, atomically
  qemu.log                 what the process says (the name under which `liveclone logs --qemu` looks)
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...errors import HypervisorError, LivecloneError
from ...host import process, unix_socket
from ...model.machine import Hardware, Memory, MemorySource, ProcessRef
from . import layers
from .wire import Wire, open_wire

CURRENT = "run"
SOCKETS = ("control", "agent", "exec", "console")
START_DEADLINE_S = 60.0

_SOURCE = Path(__file__).resolve().parents[3]


@dataclass
class Launched:
    """A machine's process that has answered, and its folder."""

    process: ProcessRef
    wire: Wire
    run: Path


def log_path(folder: Path) -> Path:
    return folder / "qemu.log"


def socket_path(folder: Path, name: str) -> Path:
    """Return where the machine's present process listens."""
    return folder / CURRENT / name


async def launch(
    name: str, folder: Path, hardware: Hardware, disk: Path, memory: Memory, *, incoming: bool
) -> Launched:
    """Start one process and connect to it. It is not the machine's present one until `adopt`.

    Raises:
        HypervisorError: it did not start; its last words are in `seen`; no process and no socket is left.
    """
    run = folder / f"{CURRENT}.{secrets.token_hex(4)}"
    log = log_path(folder)
    with ExitStack() as undo:
        run.mkdir(mode=0o700)
        undo.callback(discard, run)
        with ExitStack() as listening:
            sockets = {n: listening.enter_context(unix_socket.listen(run / n)) for n in SOCKETS}
            config = {
                "name": name,
                "run": str(run),
                "ram": memory.path,
                "ram_bytes": hardware.ram_bytes,
                "shared": memory.source is MemorySource.SHARED_HOT,
                "layers": layers.read_chain(disk),
                "incoming": incoming,
                "sockets": {n: sock.fileno() for n, sock in sockets.items()},
            }
            # Without `site`: a machine needs the standard library alone, and starts faster so.
            argv = [sys.executable, "-S", "-m", f"{__package__}.machine", json.dumps(config)]
            started = process.start(
                argv,
                cwd=folder,
                log=log,
                pass_fds=[sock.fileno() for sock in sockets.values()],
                env=os.environ | {"PYTHONPATH": str(_SOURCE)},
            )
        try:
            wire = await open_wire(name, run / "control", log, START_DEADLINE_S)
        except LivecloneError as error:
            await process.end(started)
            raise HypervisorError(
                f"the machine {name} did not start",
                code="cannot-start",
                tried="starting a fake machine",
                on=name,
                seen=error.seen or error.message,
                next_step=f"read {log}",
            ) from error
        except BaseException:
            await process.end(started)
            raise
        undo.pop_all()
    return Launched(started, wire, run)


def adopt(folder: Path, run: Path) -> None:
    """Make `run` the machine's, atomically; what earlier processes had goes."""
    link = folder / f"{CURRENT}.link"
    link.unlink(missing_ok=True)
    link.symlink_to(run.name)
    link.rename(folder / CURRENT)
    for other in folder.glob(f"{CURRENT}.*"):
        if other.name != run.name:
            discard(other)


def discard(run: Path) -> None:
    """Remove what a process had that is not, or never became, the machine."""
    shutil.rmtree(run, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what the processes of a machine had that has stopped."""
    with contextlib.suppress(FileNotFoundError):
        (folder / CURRENT).unlink()
    for run in folder.glob(f"{CURRENT}.*"):
        discard(run)
