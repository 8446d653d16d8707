"""The clone's own identity: THE SEAM that the next part of the plugin fills.

`settle` is called when the new server runs from its source's memory and has no network card. There liveclone's agent in the
guest will set host name, addresses, SSH keys and all else that must differ, and there it will be verified. That is NOT THERE
YET: no clone is verified, so none is started, unless the operator allows such ([liveclone]/unverified_clones), and then
it is marked. What has an agent and what has none will be told apart here, too.
"""

from __future__ import annotations

from nova import exception, objects
from oslo_log import log as logging

from liveclone_nova.conf import CONF

LOG = logging.getLogger(__name__)

MARK = "liveclone_identity"  # in the server's system metadata
UNVERIFIED = "unverified"


def check(instance: objects.Instance) -> None:
    """Refuse a clone that will not be verified, before anything is done for it.

    Raises:
        ImageUnacceptable: says why.
    """
    if not CONF.liveclone.unverified_clones:
        raise exception.ImageUnacceptable(
            image_id=instance.image_ref,
            reason="its identity cannot be verified yet, and [liveclone]/unverified_clones is off",
        )


def settle(instance: objects.Instance) -> None:
    """Give the clone its identity; it runs, or stands still, without any network card.

    Raises:
        ImageUnacceptable: it could not be verified; the caller ends it.
    """
    check(instance)
    LOG.warning("The server starts with the identity of its source", instance=instance)
    instance.system_metadata[MARK] = UNVERIFIED
