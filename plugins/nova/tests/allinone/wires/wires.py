"""A mechanism driver for Neutron that needs no agent: each port is a tap, and active as soon as it has a host.

Neutron finds it by an entry point, so a folder beside this file says what an installer would have written; this folder is on
the path of Neutron alone. nova-compute makes the tap, QEMU opens it; nothing is at its other end.
"""

from __future__ import annotations

from typing import Any

from neutron_lib import constants
from neutron_lib.plugins.ml2 import api


class Wires(api.MechanismDriver):
    connectivity = "l2"

    def initialize(self) -> None:
        pass

    def bind_port(self, context: Any) -> None:
        segment = context.segments_to_bind[0]
        details = {"port_filter": False, "connectivity": "l2"}
        context.set_binding(segment[api.ID], "tap", details, status=constants.PORT_STATUS_ACTIVE)
