"""The call `power`: let the system shut down or restart in its own good order."""

from __future__ import annotations

import os
import signal

from . import process
from .errors import CallError
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What systemd's process 1 does on these signals: systemd(1), "Signals". No process, no D-Bus.
_SYSTEMD = {"poweroff": signal.SIGRTMIN + 4, "reboot": signal.SIGRTMIN + 5}


def power(request: Request) -> dict[str, Any]:
    """Begin to shut down or restart once the reply is out."""
    action = str(request.args.get("action"))
    if action not in _SYSTEMD:
        raise CallError("bad-request", f"there is no action {action!r}")
    request.later.append(lambda: _begin(action))
    return {}


def _begin(action: str) -> None:
    if os.path.isdir("/run/systemd/system"):
        os.kill(1, _SYSTEMD[action])
    else:
        process.start([action]).wait()
