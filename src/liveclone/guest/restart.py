"""Units that are restarted in each clone: /etc/liveclone/restart, a name a line, # begins a remark.

For services that know nothing of clones and whose start is quick. One that does not run is left alone. All are restarted
by one command, side by side.
"""

from __future__ import annotations

import os
import time

from . import files, process
from .context import Context
from .request import elapsed_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "/etc/liveclone/restart"


def find_units(root: str) -> list[str]:
    """Return the units listed, in their order."""
    text = files.find_text(os.path.join(root, PATH.lstrip("/"))) or ""
    names = (line.partition("#")[0].strip() for line in text.splitlines())
    return list(dict.fromkeys(name for name in names if name))


def restart_units(ctx: Context) -> list[dict[str, Any]]:
    """Restart what is listed and return unit, error ("" for none) and time of each."""
    units = find_units(ctx.root)
    if not units:
        return []
    began = time.monotonic_ns()
    output = process.Output()
    problem = ""
    with ctx.request.step(f"restart of {', '.join(units)}"):
        try:
            child = process.start(
                ["systemctl", "try-restart", "--", *units],
                env={"PATH": process.PATH, "LANG": "C.UTF-8"},
                stdout=output.fd,
                stderr=output.fd,
            )
            with ctx.request.watched(child):
                code = child.wait()
            if code:
                problem = f"systemctl ended with {code}"
        except OSError as failure:
            problem = str(failure)
        finally:
            said = output.tail()
    took_ms = elapsed_ms(began)
    error = f"{problem}: {said}".rstrip(": ") if problem else ""
    # systemctl goes on after a failure and names each unit that failed; where it names none, none can be trusted.
    blamed = [unit for unit in units if unit in said] or units
    return [{"unit": unit, "error": error if unit in blamed else "", "took_ms": took_ms} for unit in units]
