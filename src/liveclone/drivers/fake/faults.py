"""What shall go wrong in which machine: LIVECLONE_FAKE_FAULT, read by a machine when it starts.

NAME:KIND:WHAT[,NAME:KIND:WHAT...]      NAME is a machine's name, or * for all

hang:CALL       the agent never finishes this call; it says so itself when its deadline has passed
die:CALL        the whole machine ends when the agent is asked this
mute:agent      the agent answers nothing at all
torn:agent      half a line of somebody else's precedes every answer
fail:ITEM       the item's reset fails
stall:ITEM      ... never ends
lie:ITEM        ... does nothing; the agent reports a change, with the old value's digest if there is one
keep:ITEM       the agent reports that the value is still the old one
twin:ITEM       ... the digest that every other machine with this fault reports
omit:ITEM       ... nothing about it
forge:nic       the guest gives its NICs another MAC, and says that it has not
stuck:nic       the guest does not let go of its NICs
ignore:power    the guest ignores the power button
abrupt:power    the machine ends before it has answered that it was pressed
refuse:STEP     the hypervisor refuses start, save, load, freeze, thaw, protect, copy, drain or finish
app:NAME        no fault: an application NAME runs in the guest and acknowledges each event ...
object:EVENT    ... but this one, to which it answers with an error
ignore:EVENT    ... or nothing at all
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

VARIABLE = "LIVECLONE_FAKE_FAULT"

_TWIN = "7" * 64


class Faults:
    """The faults of one machine.

    Args:
        text: the variable's value.
        name: the machine's.
    """

    def __init__(self, text: str, name: str) -> None:
        triples = (entry.split(":", 2) for entry in text.split(",") if entry.count(":") == 2)
        self._has = {(kind, what) for whose, kind, what in triples if whose in (name, "*")}

    def has(self, kind: str, what: str) -> bool:
        return (kind, what) in self._has

    def spoils(self, item: str) -> bool:
        """Tell whether the reset of an item goes wrong, which it does even where the guest has no such thing."""
        return any(self.has(kind, item) for kind in ("fail", "stall", "lie"))

    def spoil(self, item: str, reset: Callable[[Any], dict[str, str]]) -> Callable[[Any], dict[str, str]]:
        """Return the reset of an item with its faults worked in."""

        def spoilt(ctx: Any) -> dict[str, str]:
            if self.has("fail", item):
                raise RuntimeError("asked to fail")
            if self.has("stall", item):
                threading.Event().wait()
            return {} if self.has("lie", item) else reset(ctx)

        return spoilt

    def all(self, kind: str) -> list[str]:
        """Return what this machine has of a kind."""
        return sorted(what for found, what in self._has if found == kind)

    def distort(self, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return an identity report with the faults of its items worked in."""
        return [self._distort_item(r) for r in reports if not self.has("omit", r["item"])]

    def _distort_item(self, report: dict[str, Any]) -> dict[str, Any]:
        item = report["item"]
        if self.has("keep", item):
            return report | {"status": "kept", "after": report["before"]}
        if self.has("lie", item) and report["status"] in ("kept", "changed"):
            return report | {"status": "changed", "after": report["before"]}
        if self.has("twin", item):
            return report | {"status": "changed", "after": _TWIN}
        return report
