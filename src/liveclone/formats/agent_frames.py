"""The agent's protocol as bytes: one JSON object a line, a blank line before each (docs/agent.md).

After a restore either side may find half a line that was meant for somebody else. Each message therefore begins with a
newline, which ends whatever was torn, and a reply counts only if it carries the id of the question.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import GuestError
from ..model.base import Value

LINE_BYTES = 4 * 1024 * 1024


class AgentFailure(Value, frozen=True, kw_only=True):
    code: str
    message: str


class Reply(Value, frozen=True, kw_only=True):
    id: str
    ok: bool
    result: dict[str, Any] = {}
    error: AgentFailure | None = None


def render_request(
    request_id: str, call: str, args: dict[str, Any], deadline_s: float, *, urgent: bool = False
) -> bytes:
    """Return the bytes of one request; an `urgent` one goes before everything else in the guest.

    Raises:
        GuestError: it is longer than the agent accepts (code "too-long").
    """
    message = {"id": request_id, "call": call, "args": args, "deadline_s": deadline_s}
    body = msgspec.json.encode(message | {"urgent": True} if urgent else message)
    if len(body) > LINE_BYTES:
        raise GuestError(
            f"a request of {len(body)} bytes is too long for the agent",
            code="too-long",
            tried=f"agent {call}",
            seen=f"at most {LINE_BYTES}",
        )
    return b"\n" + body + b"\n"


def parse_reply(line: bytes, request_id: str) -> Reply | None:
    """Return the reply that `line` holds, or None: blank, torn, or an answer to another question."""
    if not line.strip():
        return None
    try:
        reply = msgspec.json.decode(line, type=Reply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return reply if reply.id == request_id else None
