"""Programs that hold private keys in memory for somebody: ssh-agent, gpg-agent and their like."""

from __future__ import annotations

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_NAMES = ("ssh-agent", "gpg-agent", "gnome-keyring-d", "pcscd", "kwalletd5", "kwalletd6", "vault")


class KeyAgents(Check):
    name = "key-agents"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for program in guest.programs:
            if program.name in _NAMES:
                yield finding(
                    str(program),
                    "may hold private keys that are unlocked",
                    "refuse",
                    f"end it before the snapshot (kill {program.pid}): each clone would hold the keys too",
                )


CHECK = KeyAgents
