"""Exit codes: a table from classes of errors, so that scripts can tell what they can do about a failure.

`exec` is the exception: its exit code is the command's own, and 125 says that it could not be run (as docker has it).
"""

from __future__ import annotations

from .. import errors

UNEXPECTED = 1
USAGE = 2
NOT_PROVEN = 13
NOT_RUN = 125
SIGNAL = 128  # + the signal's number: 130 for ctrl-C, 143 for SIGTERM

# Most special first: the first class that fits decides.
CODES: tuple[tuple[type[errors.LivecloneError], int, str], ...] = (
    (errors.Refused, 3, "refused: nothing was changed; the request or a setting has to change"),
    (errors.NotFound, 4, "no such machine, snapshot, image, file; or the machine does not run"),
    (errors.Conflict, 5, "somebody else is at work on it, or the name is taken; a retry may help"),
    (errors.TimedOut, 6, "a deadline passed; the action was undone"),
    (errors.Interrupted, 7, "the outcome is unknown: look at the state before you act"),
    (errors.HypervisorError, 8, "the hypervisor failed"),
    (
        errors.GuestError,
        9,
        "the guest or its agent failed; a clone that could not be verified; audit or prove found something",
    ),
    (errors.StoreError, 10, "files: disk full, no permission"),
    (errors.Corrupt, 11, "a part does not match its manifest; it was not used"),
    (errors.Unsupported, 12, "this host, hypervisor or guest cannot do it"),
)


def code_of(error: errors.LivecloneError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code, _ in CODES if isinstance(error, kind)), UNEXPECTED)


def render_table() -> str:
    r"""Return the table for `--help`; \b keeps typer from folding it."""
    rows = [
        (0, "done"),
        (UNEXPECTED, "an unexpected error: a fault of liveclone itself"),
        (USAGE, "the command line was not understood"),
        *((code, words) for _, code, words in CODES),
        (NOT_PROVEN, "verify: the evidence does not hold"),
        (NOT_RUN, "exec: the command could not be run; otherwise exec's code is the command's own"),
        (SIGNAL + 2, "ended by ctrl-C (143: by SIGTERM); what was begun was undone"),
    ]
    lines = [f"{code:>5}  {words}" for code, words in rows]
    return "\b\nExit codes:\n" + "\n".join(lines)
