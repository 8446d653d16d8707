"""What a host without the plugin answers, as it comes over a real message queue: not as the exception that it raised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import oslo_messaging as messaging
import pytest

from liveclone_nova import compute_api


def ask(error: Exception) -> list[str]:
    def fail(*_: Any) -> None:
        raise error

    api = SimpleNamespace(live_snapshot_rpcapi=SimpleNamespace(check_can_live_snapshot=fail))
    return compute_api.API._ask_host(api, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (messaging.RemoteError("UnsupportedVersion", "no endpoint"), "its host has no live snapshots"),
        (messaging.UnsupportedVersion("1.0"), "its host has no live snapshots"),
        (messaging.MessagingTimeout(), "its host does not answer"),
    ],
)
def test_it_is_a_reason(error: Exception, reason: str) -> None:
    assert ask(error) == [reason]


def test_what_else_went_wrong_there_is_not_hidden() -> None:
    with pytest.raises(messaging.RemoteError):
        ask(messaging.RemoteError("KeyError", "a mistake of ours"))
