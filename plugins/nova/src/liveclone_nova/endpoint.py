"""nova-compute's side of a live snapshot: task states, notifications, records, and the way back when it fails.

It follows `nova.compute.manager.ComputeManager.snapshot_instance`, decorators included:

    image_snapshot_pending -> image_snapshot -> (driver) image_pending_upload -> image_uploading -> none
    on failure: task state none, image deleted, fault and event on record, `live_snapshot.error` told

The endpoint joins those of the manager's own RPC server, with a namespace and version of its own. A driver brings it
(`register`), because a driver is what an operator can exchange in an unmodified nova-compute.
"""

from __future__ import annotations

from typing import Any

import oslo_messaging as messaging
from nova import context as nova_context
from nova import exception, exception_wrapper, objects, thread_pool_factory
from nova import manager as nova_manager
from nova.compute import manager as compute_manager
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.objects import fields
from oslo_log import log as logging
from oslo_utils import excutils

from liveclone_nova import exceptions, interface, notifications, rpcapi

LOG = logging.getLogger(__name__)

wrap_exception = exception_wrapper.wrap_exception(service="compute", binary="nova-compute")


def register(virtapi: Any, driver: interface.LiveSnapshotDriver) -> None:
    """Add the endpoint to the RPC server of the manager that loads the driver; before that server starts.

    Args:
        virtapi: what the manager gave to the driver's constructor. One without a manager behind it (a tool that only
            loads the driver) is left alone.
    """
    manager = getattr(virtapi, "_compute", None)
    if manager is None:
        LOG.warning(
            "No compute manager behind %s: live snapshots of this host are off", type(virtapi).__name__
        )
        return
    manager.additional_endpoints.append(LiveSnapshotEndpoint(manager, driver))


class LiveSnapshotEndpoint:
    """What nova-compute answers in the namespace `live_snapshot`."""

    target = messaging.Target(namespace=rpcapi.NAMESPACE, version=rpcapi.VERSION)

    def __init__(self, manager: compute_manager.ComputeManager, driver: interface.LiveSnapshotDriver) -> None:
        self._manager = manager
        self._driver = driver

    # Nova's decorators look for these three on the object whose method they decorate.

    @property
    def host(self) -> str:
        return str(self._manager.host)

    @property
    def image_api(self) -> Any:
        return self._manager.image_api

    def _instance_update(
        self, context: nova_context.RequestContext, instance: objects.Instance, **fields: Any
    ) -> None:
        self._manager._instance_update(context, instance, **fields)

    @wrap_exception
    def check_can_live_snapshot(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> list[str]:
        """Return what bars a live snapshot on this host, a few words each."""
        try:
            return self._driver.check_can_live_snapshot(context, instance)
        except NotImplementedError:
            return ["the virt driver of its host has no live snapshots"]
        except exception.InstanceNotFound:
            return ["it does not run"]

    @wrap_exception
    @compute_manager.reverts_task_state
    @compute_manager.wrap_instance_fault
    @compute_manager.delete_image_on_error
    @nova_manager.skip_automatic_rpc_tracking
    def live_snapshot_instance(
        self, context: nova_context.RequestContext, image_id: str, instance: objects.Instance
    ) -> None:
        """Take a live snapshot into an image that exists; returns when the work has begun."""
        try:
            instance.task_state = task_states.IMAGE_SNAPSHOT
            instance.save(expected_task_state=task_states.IMAGE_SNAPSHOT_PENDING)
        except (exception.InstanceNotFound, exception.UnexpectedDeletingTaskStateError):
            LOG.info("Instance is gone, no live snapshot", instance=instance)
            compute_utils.delete_image(context, instance, self.image_api, image_id)
            return
        # It takes long: another thread, and the RPC worker is free. The manager waits for it when it is shut down.
        self._manager._start_recorded_task(
            thread_pool_factory.ExecutorType.LONG_TASK,
            "live_snapshot_instance",
            instance,
            context,
            self._live_snapshot_instance,
            context,
            image_id,
            instance,
        )

    @wrap_exception
    @compute_manager.reverts_task_state
    @compute_manager.wrap_instance_fault
    @compute_manager.delete_image_on_error
    def _live_snapshot_instance(
        self, context: nova_context.RequestContext, image_id: str, instance: objects.Instance
    ) -> None:
        event = compute_utils.EventReporter(
            context, "compute_live_snapshot_instance", self.host, instance.uuid, graceful_exit=True
        )
        try:
            # No more of them at a time than of other snapshots: [DEFAULT]/max_concurrent_snapshots.
            with self._manager._snapshot_semaphore, event:
                self._capture(context.elevated(), image_id, instance)
        except (exception.InstanceNotFound, exception.UnexpectedDeletingTaskStateError):
            LOG.info("Instance was deleted during its live snapshot", instance=instance)
            compute_utils.delete_image(context, instance, self.image_api, image_id)

    def _capture(
        self, context: nova_context.RequestContext, image_id: str, instance: objects.Instance
    ) -> None:
        def tell(phase: str, error: Exception | None = None) -> None:
            notifications.notify(context, instance, self.host, phase, image_id, error)

        def update_task_state(task_state: str, expected_state: str = task_states.IMAGE_SNAPSHOT) -> None:
            instance.task_state = task_state
            instance.save(expected_task_state=expected_state)

        tell(fields.NotificationPhase.START)
        try:
            try:
                self._driver.live_snapshot(context, instance, image_id, update_task_state)
            except NotImplementedError:
                name = type(self._driver).__name__
                raise exceptions.LiveSnapshotNotSupported(driver=name) from None
            instance.task_state = None
            instance.save(expected_task_state=task_states.IMAGE_UPLOADING)
        except Exception as error:
            with excutils.save_and_reraise_exception():
                tell(fields.NotificationPhase.ERROR, error)
        tell(fields.NotificationPhase.END)
