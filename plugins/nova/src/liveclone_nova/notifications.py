"""What is told to others about a live snapshot, in both of Nova's forms.

legacy     compute.instance.live_snapshot.{start,end,error}
versioned  instance.live_snapshot.{start,end,error}, with the payload of instance.snapshot (the id of the image)
"""

from __future__ import annotations

from nova import context as nova_context
from nova import objects, rpc
from nova.compute import utils as compute_utils
from nova.notifications.objects import base
from nova.notifications.objects import exception as exception_notification
from nova.notifications.objects import instance as instance_notification
from nova.objects import fields


class EventType(base.EventType):
    """Nova's event type, for an action that its list of actions does not know."""

    def __init__(self, phase: str) -> None:
        super().__init__("instance", fields.NotificationAction.SNAPSHOT, phase)

    def to_notification_event_type_field(self) -> str:
        return f"instance.live_snapshot.{self.phase}"


def notify(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    host: str,
    phase: str,
    image_id: str,
    error: Exception | None = None,
) -> None:
    """Tell that a live snapshot has come to `phase`.

    Args:
        host: the one that works on it.
        error: why it failed; with the phase `error` alone.
    """
    # Not the manager's notifier, which warns of each legacy event that Nova's own list lacks.
    legacy = rpc.LEGACY_NOTIFIER.prepare(publisher_id=f"compute.{host}")
    compute_utils.notify_about_instance_usage(
        legacy, context, instance, f"live_snapshot.{phase}", fault=error, best_effort=error is not None
    )
    _notify_versioned(context, instance, host, phase, image_id, error)


@rpc.if_notifications_enabled
def _notify_versioned(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    host: str,
    phase: str,
    image_id: str,
    error: Exception | None,
) -> None:
    priority = fields.NotificationPriority.INFO if error is None else fields.NotificationPriority.ERROR
    fault = None if error is None else exception_notification.ExceptionPayload.from_exception(error)
    instance_notification.InstanceActionSnapshotNotification(
        context=context,
        priority=priority,
        publisher=base.NotificationPublisher(host=host, source=fields.NotificationSource.COMPUTE),
        event_type=EventType(phase),
        payload=instance_notification.InstanceActionSnapshotPayload(
            context=context, instance=instance, fault=fault, snapshot_image_id=image_id
        ),
    ).emit(context)
