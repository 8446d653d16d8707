"""A few lines in the machine's ports.log."""

from __future__ import annotations

import sys
import time


def log(text: str) -> None:
    """Write a line."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} ports: {text}\n")
    sys.stderr.flush()
