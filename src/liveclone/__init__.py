"""liveclone: live snapshots of running virtual machines, and any number of live clones of each.

    Host                 the synchronous door: run, snapshot, clone, ...
    LivecloneError       what every call may raise; see liveclone.errors

Names are loaded when they are first used, so that `liveclone --version` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import LivecloneError
    from .facade import Host

__version__ = "0.1.0"
__all__ = ["Host", "LivecloneError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Host":
        from .facade import Host

        return Host
    if name == "LivecloneError":
        from .errors import LivecloneError

        return LivecloneError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
