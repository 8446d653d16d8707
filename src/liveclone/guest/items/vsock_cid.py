"""The machine's address for its host (vsock(7)): the hypervisor gives it with the device; inside it cannot be changed."""

from __future__ import annotations

from ..context import Context
from . import Fixed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Observed


class VsockCid(Fixed):
    name = "vsock_cid"
    hazard = "programs that keep it are wrong in a clone, whose hypervisor knows it by another one"

    def observe(self, ctx: Context) -> Observed:
        cid = ctx.kernel.vsock_cid()
        return (None, {}) if cid is None else (str(cid).encode(), {"cid": str(cid)})


ITEM = VsockCid
