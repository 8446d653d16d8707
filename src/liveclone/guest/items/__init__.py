"""The identity items, one file each. Adding an item is adding a file that defines one subclass of Item.

A module of this package that defines a class `ITEM` takes part; nothing else names it. Modules are found by
listing the package, which works in a folder and in a zipapp alike.

    order 0     rng: alone, first, so that nothing is drawn from the old state
    (the generation file)
    order 10    hostname: quick, and later items name it
    order 20    the rest, side by side: what waits for a child process on a thread of its own
    order 30    what reads at its start what the others have made
"""

from __future__ import annotations

import importlib
import pkgutil

from ..context import Context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    Details = dict[str, str]
    Observed = tuple[bytes | None, dict[str, str]]


class Item:
    """One thing that must differ between machines."""

    name: ClassVar[str]
    required: ClassVar[bool] = True  # a clone without a new value is not verified
    for_source: ClassVar[bool] = False  # the source needs it too, after its snapshot
    order: ClassVar[int] = 20
    slow: ClassVar[bool] = False  # waits for a child process: reset on a thread of its own
    configured: ClassVar[bool] = False  # set to what the host asked for; has no value of its own to compare
    only_renews: ClassVar[bool] = False  # where observe() finds nothing, reset() need not be asked
    resettable: ClassVar[bool] = True  # False: it is only observed here
    pending: ClassVar[bool] = (
        False  # reset() only begins it: done once the machine has its network, seen by later observing
    )

    def observe(self, ctx: Context) -> Observed:
        """Return the item's value and public facts about it.

        The value is digested under the host's key and never leaves the guest. None: this guest has no such
        thing; b"": it has, and there is nothing to compare.
        """
        raise NotImplementedError

    def reset(self, ctx: Context) -> Details:
        """Give the item a new value; return further public facts.

        Raises:
            CannotChange: it exists and cannot be changed here.
            Exception: anything else is reported as `failed` with its text.
        """
        raise NotImplementedError

    def warm(self, ctx: Context) -> None:
        """Touch now, while there is time, what reset() will need; called before a snapshot."""


class Fixed(Item):
    """One that nothing inside the guest can, or should, change: it is observed, and `shared` where it is there."""

    required = False
    resettable = False
    hazard: ClassVar[str] = (
        ""  # what two machines that have it may come to; the scan tells, and the policy decides
    )


def load_items() -> list[Item]:
    """Return one of each item, in the order in which they are reset."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    items: list[Item] = [module.ITEM() for module in modules if hasattr(module, "ITEM")]
    return sorted(items, key=lambda item: (item.order, item.name))
