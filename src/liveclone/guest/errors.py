"""What a call may fail with. The code goes to the host; the message is for people."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CallError(Exception):
    """A call that cannot be carried out; becomes the reply's `error`, with `more` as further fields."""

    def __init__(self, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.more = more

    def fields(self) -> dict[str, Any]:
        return dict(self.more, code=self.code, message=self.message)


class CannotChange(Exception):
    """An identity item exists here and cannot be changed (a read-only mount): status `shared`."""


def log(text: str) -> None:
    """Write one line to the journal."""
    try:
        sys.stderr.write(f"liveclone-agent: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads the journal; there is nowhere left to say so


def log_exception(what: str) -> None:
    """Write the exception that is being handled to the journal, under `what`."""
    import traceback  # seldom needed, and not quick to load

    log(f"{what} failed\n{traceback.format_exc()}")
