"""Who may take live snapshots, and start servers from them. Operators override it in policy.yaml, like Nova's own rules."""

from __future__ import annotations

from nova import policy as nova_policy
from nova.policies import base
from oslo_policy import policy

CREATE = "os_compute_api:os-live-snapshot:create"
CLONE = "os_compute_api:os-live-snapshot:clone"  # its target is the project that has the image


def list_rules() -> list[policy.DocumentedRuleDefault]:
    return [
        policy.DocumentedRuleDefault(
            name=CREATE,
            check_str=base.PROJECT_MEMBER_OR_ADMIN,
            description="Create a live snapshot (memory, processor state and disk) of a running server",
            operations=[{"method": "POST", "path": "/servers/{server_id}/action (live_snapshot)"}],
            scope_types=["project"],
        ),
        policy.DocumentedRuleDefault(
            name=CLONE,
            check_str=base.PROJECT_MEMBER_OR_ADMIN,
            description="""
Create a server from the image of a live snapshot, whose project is the target.

By default from those of one's own project. Who starts a server from another one's trusts all that runs in its memory, and
its source's project knows the secrets in there. Which images anybody can see is a matter of Glance.
""",
            operations=[{"method": "POST", "path": "/servers"}],
            scope_types=["project"],
        ),
    ]


def register() -> None:
    """Make the rules known to Nova's enforcer; may be called again."""
    nova_policy.init()
    for rule in list_rules():
        if rule.name not in nova_policy._ENFORCER.registered_rules:
            nova_policy._ENFORCER.register_default(rule)
