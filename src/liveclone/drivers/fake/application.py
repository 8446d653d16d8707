"""An application in the guest that takes part in snapshots and clones, through the client that real ones use.

It writes each event that it hears into a file of the guest, so that a test can see what it was told.

NOT HANDLED: its connection is not part of the guest's memory; in a clone it is made anew before the agent hears of anything.
"""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from typing import Any

from .faults import Faults

CLIENT = __name__.partition(".drivers.")[0] + ".guest.liveclone_app"
LOG = "/var/application.log"


def start(name: str, root: Path, faults: Faults) -> None:
    """Let an application subscribe at the agent of the guest at `root`, and go on in a thread."""
    client: Any = importlib.import_module(CLIENT)
    client._AT_START = client.generation(str(root / client.GENERATION.lstrip("/")))
    socket = root / client.SOCKET.lstrip("/")
    folder = os.open(
        socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    )  # kept: the path may be too long
    log = root / LOG.lstrip("/")
    log.parent.mkdir(exist_ok=True)

    def handle(event: Any) -> None:
        with log.open("a") as file:
            file.write(f"{event.kind}\n")
        if faults.has("object", event.kind):
            event.failed("asked to fail")
        if faults.has("ignore", event.kind):
            threading.Event().wait()

    client.watch(name, handle, f"/proc/self/fd/{folder}/{socket.name}")
