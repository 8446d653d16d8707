"""Secrets in the environments of programs: passwords and tokens given as variables. Names are told, never values."""

from __future__ import annotations

import re

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_SECRET = re.compile(
    r"(?:^|_)(?:PASS(?:WORD|WD|PHRASE)?|SECRET|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(?:$|_)",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"_(?:FILE|PATH|DIR(?:ECTORY)?|NAME|ID|URL|TTL)$", re.IGNORECASE
)  # they say where it is, not what


class Environments(Check):
    name = "environments"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for program in guest.programs:
            names = [name for name in program.environment() if is_secret(name)]
            if names:
                yield finding(
                    str(program),
                    f"was started with {', '.join(names)}",
                    "accept",
                    "each clone has it in memory: accept that it is shared, or give it by a file and a `cloned` hook",
                )


def is_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret."""
    return bool(_SECRET.search(name)) and not _HARMLESS.search(name)


CHECK = Environments
