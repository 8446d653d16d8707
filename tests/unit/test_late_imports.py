"""What takes long to import is imported by those alone who use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_numpy_is_for_captures_alone(tmp_path: Path) -> None:
    """It is a tenth of a second of every command that has to do with machines, otherwise."""
    program = (
        "import asyncio, sys\n"
        "from liveclone.engine import clone, execute, remove, run, snapshot, views\n"
        "from liveclone.engine.context import open_context\n"
        "ctx = open_context()\n"
        "asyncio.run(views.list_machines(ctx))\n"
        "print(ctx.driver.name, 'liveclone.drivers.qemu.background' in sys.modules, 'numpy' in sys.modules)\n"
    )
    environment = {
        "PYTHONPATH": str(SOURCE),
        "LIVECLONE_DRIVER": "qemu",
        "LIVECLONE_HOME": str(tmp_path / "home"),
        "LIVECLONE_HOT": str(tmp_path / "hot"),
    }
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "qemu True False\n"
