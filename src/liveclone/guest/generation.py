"""The machine's generation: a file that any program in the guest may read or watch.

/run/liveclone/generation holds {"counter": 3, "uuid": "..."}; it is replaced whole. /run is memory: after a cold
boot the machine has no generation until the host gives it one, or wants a snapshot of it.
"""

from __future__ import annotations

import json
import os

from . import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "/run/liveclone/generation"


def load(root: str) -> dict[str, Any]:
    """Return the present generation; counter 0 and an empty uuid when the host has given none."""
    text = files.find_text(os.path.join(root, PATH.lstrip("/")))
    try:
        return check(json.loads(text)) if text else {"counter": 0, "uuid": ""}
    except ValueError:
        return {"counter": 0, "uuid": ""}


def first(random: bytes) -> dict[str, Any]:
    """Return the generation of a machine that the host has given none, of 16 random bytes."""
    digits = random.hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return {"counter": 0, "uuid": "-".join(parts)}


def store(root: str, generation: dict[str, Any]) -> None:
    """Make `generation` the present one."""
    path = os.path.join(root, PATH.lstrip("/"))
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    files.replace_file(path, json.dumps(generation) + "\n")


def check(value: Any) -> dict[str, Any]:
    """Return `value` as a generation; raises ValueError when it is none."""
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("counter"), int)
        or not isinstance(value.get("uuid"), str)
    ):
        raise ValueError(f"{value!r} is no generation")
    return {"counter": value["counter"], "uuid": value["uuid"]}
