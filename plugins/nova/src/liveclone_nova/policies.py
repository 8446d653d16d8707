"""Who may take live snapshots. Operators override it in policy.yaml, like Nova's own rules."""

from __future__ import annotations

from nova import policy as nova_policy
from nova.policies import base
from oslo_policy import policy

CREATE = "os_compute_api:os-live-snapshot:create"


def list_rules() -> list[policy.DocumentedRuleDefault]:
    return [
        policy.DocumentedRuleDefault(
            name=CREATE,
            check_str=base.PROJECT_MEMBER_OR_ADMIN,
            description="Create a live snapshot (memory, processor state and disk) of a running server",
            operations=[{"method": "POST", "path": "/servers/{server_id}/action (live_snapshot)"}],
            scope_types=["project"],
        )
    ]


def register() -> None:
    """Make the rules known to Nova's enforcer; may be called again."""
    nova_policy.init()
    for rule in list_rules():
        if rule.name not in nova_policy._ENFORCER.registered_rules:
            nova_policy._ENFORCER.register_default(rule)
