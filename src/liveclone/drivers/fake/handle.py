"""A fake machine, whole: its connection and the three ways to capture it."""

from __future__ import annotations

from ...model.snapshot import CaptureMethod
from ..base import Captured, CapturePlan
from . import capture
from .connection import FakeConnection


class FakeHandle(FakeConnection):
    """Implements `drivers.base.Handle`."""

    async def capture(self, plan: CapturePlan) -> Captured:
        if plan.method is CaptureMethod.HANDOVER:
            return await capture.by_handover(self, plan)
        if plan.method is CaptureMethod.BACKGROUND:
            return await capture.in_background(self, plan)
        return await capture.by_stream(self, plan)
