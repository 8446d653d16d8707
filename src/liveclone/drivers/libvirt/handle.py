"""A machine that libvirt runs, whole: its connection and the way to capture it."""

from __future__ import annotations

from ..base import Captured, CapturePlan
from . import capture
from .connection import Connection


class LibvirtHandle(Connection):
    """Implements `drivers.base.Handle`."""

    async def capture(self, plan: CapturePlan) -> Captured:
        return await capture.capture(self, plan)
