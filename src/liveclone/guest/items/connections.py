"""Connections of the source, which a clone has copies of: ended, so that their programs connect anew, as the clone.

TCP connections with others, and UDP sockets bound to an address that only the source has. What leads from the machine to
itself (loopback) is whole in the clone and stays. The source keeps all of them.
"""

from __future__ import annotations

import errno

from ..context import Context
from ..errors import CannotChange
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed


class Connections(Item):
    name = "connections"
    configured = True

    def observe(self, ctx: Context) -> Observed:
        return b"", {}

    def reset(self, ctx: Context) -> Details:
        ended, left = ctx.kernel.end_connections()
        if left:
            first, number = left[0]
            if number == errno.EOPNOTSUPP:
                raise CannotChange("this kernel cannot end connections (INET_DIAG_DESTROY)")
            raise OSError(number, f"{len(left)} connections remain, one of {first}")
        return {"ended": str(ended)}


ITEM = Connections
