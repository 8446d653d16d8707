"""What takes long to import is imported by those alone who use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_keys_are_for_those_who_sign_or_check(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from liveclone.cli.main import build_app\n"
        "from liveclone.engine import clone, proof, snapshot\n"
        "from liveclone.engine.context import open_context\n"
        "open_context()\n"
        "print('cryptography' in sys.modules)\n"
    )
    assert run(program, tmp_path) == "False\n"


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
    assert run(program, tmp_path) == "qemu True False\n"


def run(program: str, folder: Path) -> str:
    """Return what a program prints in a home of its own."""
    environment = {
        "PYTHONPATH": str(SOURCE),
        "LIVECLONE_DRIVER": "qemu",
        "LIVECLONE_HOME": str(folder / "home"),
        "LIVECLONE_HOT": str(folder / "hot"),
    }
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout
