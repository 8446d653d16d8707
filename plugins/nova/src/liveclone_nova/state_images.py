"""State images in Glance: hidden, private, of the project that the disk image belongs to, and gone with it.

A state image is worth nothing without its disk image, and nobody sees it in a list. So it is deleted when the disk image has
been deleted: nova-compute looks for such each time it looks after its image cache, as Nova's service user. It is not
protected: a project that deletes it, or itself, is free to do so, and the next server from the disk image fails saying why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nova import context as nova_context
from nova import exception
from oslo_log import log as logging

from liveclone_nova import properties, seal
from liveclone_nova.exceptions import LiveSnapshotFailed

LOG = logging.getLogger(__name__)


def create(image_api: Any, context: nova_context.RequestContext, name: str, disk_image: str) -> str:
    """Make a state image without data for this disk image, and return its id."""
    image = image_api.create(
        context,
        {
            "name": f"{name} (state)",
            "is_public": False,
            "os_hidden": True,
            "disk_format": "raw",
            "container_format": "bare",
            "properties": {"image_type": properties.STATE_TYPE, properties.DISK: disk_image},
        },
    )
    return str(image["id"])


def upload(
    image_api: Any, context: nova_context.RequestContext, image_id: str, metadata: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Give an image its data, and return what Glance says of it then.

    Raises:
        LiveSnapshotFailed: Glance computes no digest that ours could be compared with.
    """
    with path.open("rb") as file:
        image_api.update(context, image_id, metadata, file, purge_props=False)
    image: dict[str, Any] = image_api.get(context, image_id)
    if image.get("os_hash_algo") != seal.DIGEST:
        raise LiveSnapshotFailed(
            reason=f"Glance digests images by {image.get('os_hash_algo')}, and not by {seal.DIGEST} (hashing_algorithm)"
        )
    return image


def delete(image_api: Any, context: nova_context.RequestContext, image_id: str) -> None:
    """Delete an image, if it can be; what is left is found by `sweep`."""
    try:
        image_api.delete(context, image_id)
    except exception.ImageNotFound:
        pass
    except Exception:
        LOG.exception("State image %s cannot be deleted", image_id)


def sweep(image_api: Any, context: nova_context.RequestContext) -> list[str]:
    """Delete state images whose disk image is gone, and return their ids.

    Args:
        context: of somebody who sees all images, hidden and private ones, and may delete them.
    """
    filters = {"os_hidden": "true", "image_type": properties.STATE_TYPE}
    orphans = [
        image
        for image in image_api.get_all(context, filters=filters)
        if _is_orphan(image_api, context, image)
    ]
    for image in orphans:
        LOG.info("Deleting state image %s: its disk image is gone", image["id"])
        delete(image_api, context, image["id"])
    return [str(image["id"]) for image in orphans]


def _is_orphan(image_api: Any, context: nova_context.RequestContext, image: dict[str, Any]) -> bool:
    found = image["properties"]
    if found.get("image_type") != properties.STATE_TYPE or not found.get(properties.DISK):
        return False
    try:
        image_api.get(context, found[properties.DISK], show_deleted=False)
    except exception.ImageNotFound:
        return True
    return False
