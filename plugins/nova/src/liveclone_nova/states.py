"""The states that this host has fetched: each once, for all servers that start from it.

    instances_path/liveclone/states/ID/head      the description, still sealed
                                       state     device state: a save image of libvirt's without pages
                                       memory    the memory image, sparse; clones map it, or read all of it
                                    ID.part/     being fetched; becomes ID when all of it was compared
                                    ID.lock      who fetches, uses or removes it

As with `_base`: what no server of this host was made from, and nobody has used for a while, goes, by the same two options
of Nova ([image_cache] remove_unused_base_images, remove_unused_original_minimum_age_seconds). Whoever maps a memory
image that goes keeps it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova import context as nova_context
from nova import objects
from oslo_log import log as logging

from liveclone.errors import Conflict, LivecloneError
from liveclone.host import files, locks
from liveclone_nova import conf, seal, state_file
from liveclone_nova.conf import CONF
from liveclone_nova.seal import Description

LOG = logging.getLogger(__name__)

_FETCH_DEADLINE_S = 3600.0


@dataclass(frozen=True)
class State:
    """A state on this host."""

    folder: Path
    description: Description

    @property
    def device_state(self) -> Path:
        return self.folder / state_file.DEVICE_STATE

    @property
    def memory(self) -> Path:
        return self.folder / state_file.MEMORY


@contextlib.contextmanager
def use(
    image_api: Any,
    context: nova_context.RequestContext,
    state_image: str,
    check: Callable[[Description], None],
) -> Iterator[State]:
    """Fetch a state, unless it is here, and keep it here in the block.

    Args:
        state_image: its id in Glance.
        check: raises if it is not the one that is wanted; called before more than its head is fetched.

    Raises:
        Corrupt: it is not sealed by this cloud, or damaged. StoreError: no room. And what Glance raises. Nothing is left.
    """
    folder = conf.make_folder("states") / state_image
    lock = folder.with_suffix(".lock")
    with locks.hold(lock, "fetching it", _FETCH_DEADLINE_S):
        if not folder.exists():
            _fetch(image_api, context, state_image, folder, check)
    with locks.hold(lock, "starting a server", _FETCH_DEADLINE_S, shared=True):
        description = seal.parse_head((folder / state_file.HEAD).read_bytes(), conf.seal_keys())
        check(description)
        os.utime(folder / state_file.HEAD)
        yield State(folder, description)


def _fetch(
    image_api: Any,
    context: nova_context.RequestContext,
    state_image: str,
    folder: Path,
    check: Callable[[Description], None],
) -> None:
    part = folder.with_suffix(".part")
    if part.exists():  # nobody else is at it: we hold the lock
        files.remove_tree(part)
    part.mkdir(mode=0o700)
    try:
        with contextlib.closing(_Pieces(image_api.download(context, state_image))) as pieces:
            state_file.fetch(pieces, part, conf.seal_keys(), check)
        part.rename(folder)
        files.sync_folder(folder.parent)
    except BaseException:
        files.remove_tree(part)
        raise


class _Pieces:
    """What Glance sends, and an end of it before the end, whatever its client makes of that."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._pieces: Iterator[bytes] = iter(source)

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        for one in (self._pieces, self._source):
            if hasattr(one, "close"):
                one.close()


def age_out(instances: Iterable[objects.Instance]) -> list[str]:
    """Remove states that no server needs any more, and return their ids.

    Args:
        instances: all servers that use this host's instances_path.
    """
    if not CONF.image_cache.remove_unused_base_images:
        return []
    in_use = {instance.image_ref for instance in instances}
    oldest = time.time() - CONF.image_cache.remove_unused_original_minimum_age_seconds
    removed = []
    for head in conf.folder("states").glob(f"*/{state_file.HEAD}"):
        folder = head.parent
        if folder.suffix == ".part" or head.stat().st_mtime > oldest:
            continue
        with contextlib.suppress(Conflict), locks.hold(folder.with_suffix(".lock"), "removing it"):
            if _disk_of(head) not in in_use:
                LOG.info("Removing the state of a live snapshot: %s", folder)
                files.remove_tree(folder)
                removed.append(folder.name)
    return removed


def _disk_of(head: Path) -> str:
    try:
        return seal.parse_head(head.read_bytes(), conf.seal_keys()).disk_image
    except LivecloneError:  # of a key that is not used any more: nothing can start from it
        return ""
