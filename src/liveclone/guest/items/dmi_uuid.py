"""The UUID in the firmware tables (DMI): guest memory, written before the system started, so a copy of the source's.

Nothing inside the guest can change what the kernel has read from there. Whoever takes it for the name of one machine (some
inventories and licences do) mixes up the clones of a source.
"""

from __future__ import annotations

from .. import files
from ..context import Context
from . import Fixed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Observed


class DmiUuid(Fixed):
    name = "dmi_uuid"
    hazard = "inventories and licences that take it for the name of one machine mix up the clones"

    def observe(self, ctx: Context) -> Observed:
        return (files.find_bytes(ctx.path("/sys/class/dmi/id/product_uuid")) or b"").strip() or None, {}


ITEM = DmiUuid
