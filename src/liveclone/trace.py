"""Named points that an operation passes, so that tests can stop the world exactly there.

Each step of an operation calls `trace.at("snapshot.prepared")`. In ordinary use that is one lookup in
an empty table. A fault test sets LIVECLONE_FAULT to `POINT=ACTION` (several with commas), where
ACTION is `kill` (SIGKILL to ourselves, as the kernel's out-of-memory killer would), `raise` (an
error at this point), `wait:FIFO` (open FIFO for reading, which blocks until the test opens the
other end: the test may then kill QEMU, fill a disk, and so on) or `exit`. The list of points that a run
passed goes to the file LIVECLONE_TRACE when that is set, one a line, so that tests can demand that
every point is covered.
"""

from __future__ import annotations

import contextlib
import os
import signal

from .errors import Interrupted


def _read_faults(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {point: action for point, _, action in pairs}


_faults = _read_faults(os.environ.get("LIVECLONE_FAULT", ""))
_trace_path = os.environ.get("LIVECLONE_TRACE", "")


def at(point: str) -> None:
    """Mark that the operation has reached `point`; does what LIVECLONE_FAULT asks for it, once."""
    if _trace_path:
        # A process that goes on in the background may outlive whoever wanted to know.
        with contextlib.suppress(FileNotFoundError), open(_trace_path, "a", encoding="ascii") as file:
            file.write(point + "\n")
    if not _faults:
        return
    action = _faults.pop(point, "")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(70)
    elif action == "raise":
        raise Interrupted(f"stopped by request at {point}", code="fault-injected", tried=point)
    elif action.startswith("wait:"):
        with open(action.removeprefix("wait:"), "rb") as fifo:
            fifo.read()
