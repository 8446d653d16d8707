"""Start a QEMU whose sockets already listen, and find it again.

    machines/ID/
      run -> run.7c1f          the sockets of the process that is the machine now
      run.7c1f/{qmp,agent,exec,console}
      run.93ab/...             a successor during a handover; `adopt` moves the link, atomically
      qemu.log console.log

The sockets are bound and listening before QEMU starts and are passed to it as descriptors, so whoever connects
early waits in the kernel's queue: no loop waits for a socket to appear.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...errors import HypervisorError, Interrupted, LivecloneError
from ...host import files, process, unix_socket
from ...model.machine import Boot, Hardware, Memory, MemorySource, ProcessRef
from . import argv
from .disk import read_chain
from .session import Session, last_words, open_session

CURRENT = "run"
QEMU_LOG = "qemu.log"
CONSOLE_LOG = "console.log"

# Mapping RAM and building the device model takes 40-50 ms (FACTS.md); a loaded host may need far longer.
START_DEADLINE_S = 60.0


@dataclass
class Launched:
    """A QEMU that has answered on QMP, and the folder of its sockets."""

    process: ProcessRef
    session: Session
    run: Path


def log_path(folder: Path) -> Path:
    return folder / QEMU_LOG


def socket_path(folder: Path, name: str) -> Path:
    """Return where the machine's present process listens."""
    return folder / CURRENT / name


async def launch(
    *,
    name: str,
    folder: Path,
    hardware: Hardware,
    boot: Boot,
    disk: Path,
    memory: Memory,
    read_only_ram: bool,
    incoming: bool,
) -> Launched:
    """Start one QEMU and connect to it. It is not the machine's present process until `adopt`.

    Raises:
        HypervisorError: it did not start; its last words are in `seen`; no process and no socket is left.
    """
    run = folder / f"{CURRENT}.{secrets.token_hex(4)}"
    with ExitStack() as undo:
        files.make_folder(run)
        undo.callback(shutil.rmtree, run, ignore_errors=True)
        with ExitStack() as listening:
            sockets = {n: listening.enter_context(unix_socket.listen(run / n)) for n in argv.SOCKETS}
            command = argv.render_argv(
                name=name,
                hardware=hardware,
                boot=boot,
                disk=read_chain(disk),
                ram=Path(memory.path),
                ram_shared=memory.source is MemorySource.SHARED_HOT,
                read_only_ram=read_only_ram,
                incoming=incoming,
                socket_fds={n: sock.fileno() for n, sock in sockets.items()},
                console_log=folder / CONSOLE_LOG,
            )
            started = process.start(
                command,
                cwd=folder,
                log=log_path(folder),
                pass_fds=[sock.fileno() for sock in sockets.values()],
            )
        # The listening sockets are QEMU's alone now: when it dies a connect is refused at once.
        try:
            session = await open_session(name, run / "qmp", log_path(folder), START_DEADLINE_S)
        except LivecloneError as error:
            await process.end(started)
            words = last_words(log_path(folder)) if isinstance(error, Interrupted) else ""
            raise HypervisorError(
                f"QEMU of {name} did not start",
                code="cannot-start",
                tried="starting QEMU",
                on=name,
                seen=words or error.seen or error.message,
                next_step=f"read {log_path(folder)}",
            ) from error
        except BaseException:
            await process.end(started)
            raise
        undo.pop_all()
    return Launched(started, session, run)


def adopt(folder: Path, run: Path) -> None:
    """Make `run` the sockets of the machine, atomically; the folders of earlier processes go."""
    link = folder / f"{CURRENT}.link"
    link.unlink(missing_ok=True)
    link.symlink_to(run.name)
    link.rename(folder / CURRENT)
    for other in folder.glob(f"{CURRENT}.*"):
        if other.name != run.name:
            shutil.rmtree(other, ignore_errors=True)


def discard(run: Path) -> None:
    """Remove the sockets of a process that never became the machine."""
    shutil.rmtree(run, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove all sockets of a machine that has stopped."""
    with contextlib.suppress(FileNotFoundError):
        (folder / CURRENT).unlink()
    for run in folder.glob(f"{CURRENT}.*"):
        shutil.rmtree(run, ignore_errors=True)


def make_ram_file(memory: Memory, size_bytes: int) -> None:
    """Create the empty RAM file of a machine that starts from cold, owner only.

    A file that has this name already is left to whoever maps it; truncating it would pull RAM from under a guest.
    """
    try:
        Path(memory.path).unlink(missing_ok=True)
        fd = os.open(memory.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise files.explain(error, "making the RAM file", Path(memory.path)) from error
