"""nova-api's side of the RPC: what it asks of the nova-compute that runs an instance.

The namespace keeps it apart from Nova's own methods on the same server, so that Nova's versions are not touched.

    1.0  check_can_live_snapshot, live_snapshot_instance
"""

from __future__ import annotations

import oslo_messaging as messaging
from nova import context as nova_context
from nova import objects, rpc
from nova.compute import rpcapi as compute_rpcapi
from nova.objects import base as objects_base

NAMESPACE = "live_snapshot"
VERSION = "1.0"


class LiveSnapshotAPI:
    """The client. A compute whose driver brought no endpoint answers a call with UnsupportedVersion."""

    def __init__(self) -> None:
        target = messaging.Target(topic=compute_rpcapi.RPC_TOPIC, namespace=NAMESPACE, version=VERSION)
        # A router, because each cell has a message queue of its own.
        self.router = rpc.ClientRouter(rpc.get_client(target, serializer=objects_base.NovaObjectSerializer()))

    def check_can_live_snapshot(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> list[str]:
        """Ask the instance's host what bars a live snapshot; waits for the answer.

        Raises:
            messaging.UnsupportedVersion, messaging.RemoteError: that compute does not know the question.
            messaging.MessagingTimeout: it did not answer.
        """
        client = self.router.client(context).prepare(server=instance.host)
        reasons: list[str] = client.call(context, "check_can_live_snapshot", instance=instance)
        return reasons

    def live_snapshot_instance(
        self, context: nova_context.RequestContext, instance: objects.Instance, image_id: str
    ) -> None:
        """Have the instance's host take the live snapshot into an image that exists; does not wait."""
        client = self.router.client(context).prepare(server=instance.host)
        client.cast(context, "live_snapshot_instance", instance=instance, image_id=image_id)
