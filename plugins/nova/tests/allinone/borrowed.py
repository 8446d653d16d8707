"""The private libvirtd of the checkout's own tests. Their package is `tests`, as is this one: it is loaded by its path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[4]

if TYPE_CHECKING:
    from tests import libvirtd as libvirtd
else:
    _spec = importlib.util.spec_from_file_location("liveclone_tests_libvirtd", ROOT / "tests" / "libvirtd.py")
    libvirtd = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = libvirtd
    _spec.loader.exec_module(libvirtd)
