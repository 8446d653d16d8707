"""What a measurement depends on besides what is measured: the host, as dimensions of every entry."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from liveclone import __version__
from liveclone.engine import settings
from liveclone.host import machine
from liveclone.units import MIB

from .series import Scalar


def describe() -> dict[str, Scalar]:
    """Return this host: processors, their model, memory, kernel; and which liveclone is measured."""
    return {
        "cpus": machine.cpus(),
        "cpu_model": _model(),
        "host_memory_mib": machine.memory().total_bytes // MIB,
        "host_kernel": platform.release(),
        "host_system": _system(),
        "network": settings.read().network.value,
        "liveclone": __version__,
    }


def _model() -> str:
    text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""
