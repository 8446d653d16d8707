"""The QEMU guest agent that a domain's guest may have from its distribution, asked through libvirt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import libvirt_qemu

from ...errors import GuestError, HypervisorError
from ..base import no_stock_agent

if TYPE_CHECKING:
    from .connection import Connection

CHANNEL = "org.qemu.guest_agent.0"


async def ask(connection: Connection, command: str, arguments: dict[str, Any], deadline_s: float) -> Any:
    """See `drivers.base.Handle.ask_stock_agent`."""
    channel = (await connection.read()).find_channel(CHANNEL)
    if channel is None:
        raise no_stock_agent(connection.name, f"the domain has no channel {CHANNEL}")
    if channel.state == "disconnected":
        raise no_stock_agent(connection.name, f"nobody in the guest has opened {CHANNEL}")
    request = json.dumps({"execute": command, "arguments": arguments})
    tried = f"{command} of the QEMU guest agent"
    try:
        answer = await connection.call(
            tried,
            libvirt_qemu.qemuAgentCommand,
            connection.domain,
            request,
            max(1, round(deadline_s)),
            0,
        )
    except HypervisorError as error:
        raise GuestError(
            f"the QEMU guest agent of {connection.name} refused {command}",
            code="stock-agent-refused",
            tried=tried,
            on=connection.name,
            seen=error.seen,
            source_state="running",
            next_step="the guest's journal: journalctl -u qemu-guest-agent",
        ) from error
    return json.loads(answer)["return"]
