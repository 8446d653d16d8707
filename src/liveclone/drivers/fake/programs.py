"""The host's programs that a fake guest may start. No other is found, so that no identity item can ever touch the host."""

from __future__ import annotations

import os
from pathlib import Path

PROGRAMS = (
    "ssh-keygen",
    "sh",
    "cat",
    "cp",
    "date",
    "echo",
    "env",
    "mkdir",
    "mv",
    "rm",
    "sleep",
    "tee",
    "touch",
    "true",
)


def link(folder: Path) -> None:
    """Fill an empty folder with links to those that the host has."""
    for name in PROGRAMS:
        found = find(name)
        if found:
            (folder / name).symlink_to(found)


def find(name: str) -> str | None:
    """Return where a program is, None where there is none."""
    # Not shutil.which: importing shutil would be a fifth of a machine's start.
    paths = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in paths if os.access(path, os.X_OK)), None)
