"""What names this machine and cannot be changed from inside (items/Fixed): every clone has it too."""

from __future__ import annotations

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding


class Shared(Check):
    name = "shared"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for item in guest.shared:
            yield finding(item.name, "will be the same in every clone", "accept", item.hazard)


CHECK = Shared
