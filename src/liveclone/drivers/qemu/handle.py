"""A machine that QEMU runs, whole: its connection and the three ways to capture it."""

from __future__ import annotations

from ...model.snapshot import CaptureMethod
from ..base import Captured, CapturePlan
from . import background, handover, stream
from .connection import Connection


class QemuHandle(Connection):
    """Implements `drivers.base.Handle`."""

    async def capture(self, plan: CapturePlan) -> Captured:
        if plan.method is CaptureMethod.HANDOVER:
            return await handover.capture(self, plan)
        if plan.method is CaptureMethod.BACKGROUND:
            return await background.capture(self, plan)
        return await stream.capture(self, plan)
