"""Names of the image properties by which a live snapshot's disk image is tied to its state.

disk image     live_snapshot_state=ID of the state image; trait:CUSTOM_LIVECLONE=required, and others (traits.py)
               live_snapshot_identity=verifiable, or why it is not: for people, nothing is decided by it
state image    hidden; image_type=live_snapshot_state, live_snapshot_disk=ID of the disk image
"""

from __future__ import annotations

STATE = "live_snapshot_state"  # the id of the image that holds memory and device state
TRAIT = "CUSTOM_LIVECLONE"  # a host that restores
REQUIRED_TRAIT = f"trait:{TRAIT}"  # so that no plain host boots from the disk what should be restored
IDENTITY = "live_snapshot_identity"
VERIFIABLE = "verifiable"
TIES = (STATE, REQUIRED_TRAIT, IDENTITY)  # what an image made of a clone must not have

STATE_TYPE = "live_snapshot_state"  # image_type of a state image
DISK = "live_snapshot_disk"
