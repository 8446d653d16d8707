"""The clone-safety scan: all checks, one after the other; one that fails is reported and keeps no other from running."""

from __future__ import annotations

from .checks import Guest, load_checks
from .errors import CallError, log_exception
from .request import Request, elapsed_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from typing import Any

    from .items import Fixed


def scan(
    root: str, request: Request, subscribed: Container[int] = (), shared: Sequence[Fixed] = ()
) -> dict[str, Any]:
    """Return `checks` (the names of those that ran), `findings` (with the check's name) and `failed`."""
    guest = Guest(root, subscribed, shared)
    names, findings, failed = [], [], []
    for check in load_checks():
        with request.step(f"check {check.name}"):
            try:
                findings += [dict(found, check=check.name) for found in check.look(guest)]
                names.append(check.name)
            except CallError:
                raise
            except Exception as error:
                log_exception(f"check {check.name}")
                failed.append({"check": check.name, "error": f"{type(error).__name__}: {error}"})
    return {
        "checks": names,
        "findings": findings,
        "failed": failed,
        "took_ms": elapsed_ms(request.read_at_ns),
    }
