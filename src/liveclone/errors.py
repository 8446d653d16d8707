"""Every error the product raises, sorted by what the caller can do about it.

    LivecloneError
    ├── Refused          nothing was changed: the request cannot be carried out as it stands
    │   └── ConfigError  a setting (environment, file, option) has no meaning
    ├── Unsupported      this host, hypervisor or guest cannot do it at all
    ├── NotFound         no such machine, snapshot, image, process
    ├── Conflict         somebody else holds it just now, or the name is taken; a retry may help
    ├── TimedOut         a deadline passed; the action was undone
    ├── Interrupted      the outcome is unknown: ask again for the state before you act
    ├── HypervisorError  QEMU or libvirt failed
    ├── GuestError       the guest or its agent failed
    ├── StoreError       files: disk full, no permission, not the file system we need
    └── Corrupt          a part does not match its manifest; it was refused before any use

Each carries a stable `code` for programs, a sentence for people and, as typed fields, what a person
needs next: what was tried, on what, what was seen, in what state the source machine is, what to do.
Tables at the edges (cli/exits.py, later api/) map classes to exit codes and HTTP status.
"""

from __future__ import annotations

from typing import Any


class LivecloneError(Exception):
    """Base of the tree.

    Args:
        message: what failed, one sentence, no trailing full stop.
        code: stable identifier of this very failure ("name-taken"); the class's own by default.
        tried: the step or command that was attempted.
        on: the object it was attempted on (machine, snapshot, file).
        seen: what came back instead of success.
        source_state: in what state the source machine was left ("running", "paused", ...).
        next_step: a command or an action that helps.
    """

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        tried: str = "",
        on: str = "",
        seen: str = "",
        source_state: str = "",
        next_step: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.tried = tried
        self.on = on
        self.seen = seen
        self.source_state = source_state
        self.next_step = next_step

    def fields(self) -> dict[str, Any]:
        """Return the error as a flat mapping for `--json` and logs; empty fields are left out."""
        pairs = {
            "error": self.code,
            "kind": type(self).__name__,
            "message": self.message,
            "tried": self.tried,
            "on": self.on,
            "seen": self.seen,
            "source_state": self.source_state,
            "next_step": self.next_step,
        }
        return {key: value for key, value in pairs.items() if value}


class Refused(LivecloneError):
    code = "refused"


class ConfigError(Refused):
    code = "config"


class Unsupported(LivecloneError):
    code = "unsupported"


class NotFound(LivecloneError):
    code = "not-found"


class Conflict(LivecloneError):
    code = "conflict"


class TimedOut(LivecloneError):
    code = "timed-out"


class Interrupted(LivecloneError):
    code = "interrupted"


class HypervisorError(LivecloneError):
    code = "hypervisor"


class GuestError(LivecloneError):
    code = "guest"


class StoreError(LivecloneError):
    code = "store"


class Corrupt(LivecloneError):
    code = "corrupt"
