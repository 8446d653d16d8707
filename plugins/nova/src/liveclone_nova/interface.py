"""What a virt driver offers so that its guests can be live-snapshotted: two methods, named as proposed in 2013.

Another driver takes part like this; where it has nothing to say to a method, the user is told that it has no live snapshots:

    class MyDriver(interface.LiveSnapshotDriver, driver.ComputeDriver):
        def __init__(self, virtapi):
            super().__init__(virtapi)
            endpoint.register(virtapi, self)
"""

from __future__ import annotations

from collections.abc import Callable

from nova import context as nova_context
from nova import objects


class LiveSnapshotDriver:
    """Mixed into a subclass of nova.virt.driver.ComputeDriver."""

    def check_can_live_snapshot(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> list[str]:
        """Return what of the running guest bars a live snapshot, a few words each; changes nothing.

        Called while the user waits. What Nova's records say (`obstacles`) has been looked at before.
        """
        raise NotImplementedError

    def live_snapshot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_id: str,
        update_task_state: Callable[..., None],
    ) -> None:
        """Capture memory, processor state and disk of the running guest into the image.

        Args:
            image_id: exists, has no data yet; afterwards it is active.
            update_task_state: called with task_state=IMAGE_PENDING_UPLOAD once the guest is captured and runs as
                before, then with task_state=IMAGE_UPLOADING, expected_state=IMAGE_PENDING_UPLOAD.

        Raises:
            Exception: the guest runs as before, with its network. The caller removes the image.
        """
        raise NotImplementedError
