"""Processes that outlive the command that started them, and are never mistaken for another.

A pid alone is not a name: it is reused, and after a reboot it means something else. A `ProcessRef` adds the
start time and the host's boot id. Waiting and signalling go through a pidfd, so a signal can only reach the
process that was meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import HypervisorError, NotFound, TimedOut
from ..model.machine import ProcessRef

# Field 3 (state), 20 (num_threads) and 22 (starttime) of /proc/PID/stat, counted behind the command name: proc(5).
_STATE, _THREADS, _START = 0, 17, 19


@functools.cache
def boot_id() -> str:
    """Return the identifier of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read_stat(pid: int) -> tuple[bool, int] | None:
    """Return whether the process has ended, and its start time; None if its number is free.

    A process whose first thread is a zombie may have others that are still ending, with all its files open: a QEMU that
    was killed keeps its tap and its disk for some 20 ms so.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    ended = fields[_STATE] in (b"Z", b"X") and int(fields[_THREADS]) <= 1
    return ended, int(fields[_START])


def ref(pid: int) -> ProcessRef:
    """Return the reference of the process that has `pid` now.

    Raises:
        NotFound: there is none (code "not-running").
    """
    stat = _read_stat(pid)
    if stat is None:
        raise NotFound(
            f"process {pid} is gone", code="not-running", tried="looking at a process", on=str(pid)
        )
    return ProcessRef(pid=pid, start_ticks=stat[1], boot_id=boot_id())


def is_alive(process: ProcessRef | None) -> bool:
    """Tell whether the process still runs. A zombie does not; if it is our own child it is reaped."""
    if process is None or process.boot_id != boot_id():
        return False
    stat = _read_stat(process.pid)
    if stat is None or stat[1] != process.start_ticks:
        return False
    if stat[0]:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        return False
    return True


def start(
    argv: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> ProcessRef:
    """Start a process in a session of its own, output to `log` (appended), no standard input.

    It goes on when we end. The caller may watch it by the reference; `pass_fds` keep their numbers in it.

    Raises:
        HypervisorError: the program cannot be started; nothing is left.
    """
    with log.open("ab") as out:
        try:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
                env=env,
            )
        except OSError as error:
            raise HypervisorError(
                f"{argv[0]} cannot be started",
                code="cannot-start",
                tried=" ".join(argv[:3]) + " ...",
                seen=str(error),
                next_step="liveclone doctor",
            ) from error
    process = ref(child.pid)
    # The Popen object would complain when it is collected while the process runs; who waits is is_alive().
    child.returncode = 0
    return process


async def wait(process: ProcessRef, deadline_s: float) -> bool:
    """Wait until the process is gone; False when the deadline passes first."""
    if not is_alive(process):
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(fd, gone.set)
    try:
        if not is_alive(process):
            return True
        await asyncio.wait_for(gone.wait(), deadline_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    is_alive(process)  # reaps it if it was our child
    return True


def send(process: ProcessRef, number: signal.Signals) -> None:
    """Send a signal to exactly this process; one that is gone is no error."""
    if not is_alive(process):
        return
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


async def end(process: ProcessRef, *, grace_s: float = 0.0) -> None:
    """End the process: TERM, `grace_s` seconds, KILL; returns when it is gone.

    Raises:
        TimedOut: it is still there ten seconds after SIGKILL (stuck in the kernel).
    """
    if grace_s:
        send(process, signal.SIGTERM)
        if await wait(process, grace_s):
            return
    send(process, signal.SIGKILL)
    if not await wait(process, 10.0):
        raise TimedOut(
            f"process {process.pid} does not end",
            code="process-stuck",
            tried="SIGKILL",
            on=str(process.pid),
            seen="still there after 10 s",
            next_step=f"look at /proc/{process.pid}/stack",
        )


def wait_gone(process: ProcessRef, deadline_s: float) -> bool:
    """Wait, without an event loop, until the process is gone; False when the deadline passes first."""
    if not is_alive(process):
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(deadline_s * 1000)
    finally:
        os.close(fd)
    return not is_alive(process)


def find_logging_into(folder: Path) -> list[ProcessRef]:
    """Return the processes whose standard output is a file in `folder`: those that `start` started for it.

    Tells of a process that was started by somebody who died before writing it down.
    """
    found = []
    prefix = f"{folder.resolve()}/"
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, NotFound):
            if str(Path(f"/proc/{entry.name}/fd/1").readlink()).startswith(prefix):
                found.append(ref(int(entry.name)))
    return found


def find(text: str) -> list[tuple[int, str]]:
    """Return (pid, command line) of all processes whose command line holds `text`, ourselves left out."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if text in line:
                found.append((int(folder.name), line))
    return found
