"""What a scrub has stopped and taken out: on file, since the agent becomes another process meanwhile.

`/run/liveclone/scrubbed.json` is there from the scrub on; in the source until all is back, in a clone until it has an
identity of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from . import files
from .errors import log
from .kernel import Kernel

STATE = "/run/liveclone/scrubbed.json"


def load(root: str) -> dict[str, list[str]]:
    """Return the `units` that stand still, and the kinds of host `keys` that were taken out; mostly none."""
    text = files.find_text(os.path.join(root, STATE.lstrip("/")))
    state: dict[str, list[str]] = json.loads(text) if text else {"units": [], "keys": []}
    return state


def save(root: str, units: list[str], keys: list[str]) -> None:
    """Note what is about to be stopped and taken out."""
    path = os.path.join(root, STATE.lstrip("/"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.replace_file(path, json.dumps({"units": units, "keys": keys}), 0o600)


def finish(root: str, kernel: Kernel, more: Sequence[str] = ()) -> list[str]:
    """Start what was stopped, and `more`; forget all, and return the units. Nothing happens where nothing was."""
    units = list(dict.fromkeys([*load(root)["units"], *more]))
    if units:
        code, said = kernel.systemctl("start", "--no-block", *units)
        if code:
            log(f"starting {' '.join(units)} ended with {code}: {said}")
    files.remove(os.path.join(root, STATE.lstrip("/")))
    return units
