"""nova-api's side of a live snapshot: may it be, and if so, an image, a task state, a record, and a cast.

It follows `nova.compute.api.API.snapshot`, with the same task states: what Nova does about those when a compute restarts, or
when power states are compared, then holds for live snapshots too. Three things differ. The lock counts, since the
server loses its network for a moment. The host is asked first, so that what it cannot do is a 409 and not a cast into
nothing, after which the server would stay "image pending" for ever. And whatever fails here takes the image away again.
"""

from __future__ import annotations

from typing import Any

import oslo_messaging as messaging
from nova import context as nova_context
from nova import exception, objects
from nova.compute import api as nova_compute_api
from nova.compute import task_states, vm_states
from nova.compute import utils as compute_utils
from oslo_log import log as logging
from oslo_utils import excutils

from liveclone_nova import exceptions, obstacles, policies, properties, rpcapi

LOG = logging.getLogger(__name__)

ACTION = "live_snapshot"  # in the list of the server's actions


class API(nova_compute_api.API):
    """Nova's compute API with live snapshots: the action, and a policy for servers that are made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.live_snapshot_rpcapi = rpcapi.LiveSnapshotAPI()

    @nova_compute_api.check_instance_lock
    @nova_compute_api.check_instance_state(vm_state=[vm_states.ACTIVE])
    @nova_compute_api.check_instance_host(check_is_up=True)
    def live_snapshot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        name: str,
        extra_properties: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Start a live snapshot and return the image that it will be in.

        Args:
            instance: running; its host does the work afterwards.
            name: of the image.
            extra_properties: of the image, from the user.

        Raises:
            InstanceInvalidState: not active, busy, locked, or deleted meanwhile.
            ServiceUnavailable: its host is down.
            LiveSnapshotNotPossible: with all reasons.
            Whatever is raised, there is no image, and the task state is what it was.
        """
        self._refuse_obstacles(context, instance)
        image = compute_utils.create_image(
            context, instance, name, "snapshot", self.image_api, extra_properties=extra_properties
        )
        try:
            self._begin(context, instance, image["id"])
        except Exception:
            with excutils.save_and_reraise_exception():
                compute_utils.delete_image(context, instance, self.image_api, image["id"])
        return dict(image)

    def _validate_and_build_base_options(
        self,
        context: nova_context.RequestContext,
        flavor: objects.Flavor,
        image: Any,
        *others: Any,
        **more: Any,
    ) -> Any:
        """Do what Nova does of a server that is to be created, once it may be made of that image.

        Raises:
            PolicyNotAuthorized: a live snapshot of another project's, or one whose project nobody knows.
        """
        if (image or {}).get("properties", {}).get(properties.STATE):
            context.can(policies.CLONE, target={"project_id": image.get("owner")})
        return super()._validate_and_build_base_options(context, flavor, image, *others, **more)

    def _refuse_obstacles(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        bdms = objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid)
        shares = objects.ShareMappingList.get_by_instance_uuid(context, instance.uuid)
        reasons = obstacles.find_obstacles(instance, bdms, shares) or self._ask_host(context, instance)
        if reasons:
            raise exceptions.LiveSnapshotNotPossible(instance_uuid=instance.uuid, reasons="; ".join(reasons))

    def _ask_host(self, context: nova_context.RequestContext, instance: objects.Instance) -> list[str]:
        try:
            return self.live_snapshot_rpcapi.check_can_live_snapshot(context, instance)
        except messaging.MessagingTimeout:
            return ["its host does not answer"]
        except messaging.UnsupportedVersion:
            return ["its host has no live snapshots"]
        except messaging.RemoteError as error:
            # What comes over a real message queue: only Nova's own exceptions are rebuilt on this side.
            if error.exc_type != messaging.UnsupportedVersion.__name__:
                raise
            return ["its host has no live snapshots"]

    def _begin(self, context: nova_context.RequestContext, instance: objects.Instance, image_id: str) -> None:
        instance.task_state = task_states.IMAGE_SNAPSHOT_PENDING
        try:
            instance.save(expected_task_state=[None])
        except exception.InstanceNotFound:
            raise _invalid_state(instance, "vm_state", vm_states.DELETED) from None
        except exception.UnexpectedDeletingTaskStateError:
            raise _invalid_state(instance, "task_state", task_states.DELETING) from None
        except exception.UnexpectedTaskStateError as error:
            actual = error.kwargs["actual"]["task_state"]  # somebody else was quicker
            raise _invalid_state(instance, "task_state", actual) from None
        try:
            self._record_action_start(context, instance, ACTION)
            self.live_snapshot_rpcapi.live_snapshot_instance(context, instance, image_id)
        except Exception:
            with excutils.save_and_reraise_exception():
                instance.task_state = None
                instance.save(expected_task_state=task_states.IMAGE_SNAPSHOT_PENDING)


def _invalid_state(instance: objects.Instance, attribute: str, state: Any) -> exception.InstanceInvalidState:
    return exception.InstanceInvalidState(
        attr=attribute, instance_uuid=instance.uuid, state=state, method=ACTION
    )
