"""Names of the image properties by which a live snapshot's disk image is tied to its state."""

from __future__ import annotations

STATE = "live_snapshot_state"  # the id of the image that holds memory and device state
TIES = (STATE,)
