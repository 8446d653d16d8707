"""cloud-init's instance id. At a boot where it is not what the datasource tells, cloud-init sets the machine up anew.

the seed is on the     both get a new id, and the semaphores of what has been done move along: nothing is done again.
machine's own disk     cloud-init's copy of the metadata goes, so that it reads the seed (with the clone's host name)
the id comes from      it stays. Where the platform gives the clone an id of its own (OpenStack), cloud-init sets the
outside                clone up at its next boot, as the platform wants; with a copy of the source's drive, nothing
the id is a constant   (no datasource) there is nothing to renew
"""

from __future__ import annotations

import os
import re

from .. import files
from ..context import Context
from . import Item
from .machine_id import render_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_BASE = "/var/lib/cloud"
_ID = f"{_BASE}/data/instance-id"
_LINK = f"{_BASE}/instance"
_SEEDS = (f"{_BASE}/seed/nocloud", f"{_BASE}/seed/nocloud-net")
_RUNNING = tuple(
    f"/run/cloud-init/{name}"
    for name in (".instance-id", "instance-data.json", "instance-data-sensitive.json")
)
_CONSTANT = "iid-datasource"  # what a datasource without an id says, the same everywhere
_FIELD = r"(?<![\w-])({}[\"']?\s*:\s*[\"']?)([^\s\"',}}]+)"
_SEEDS_ID = re.compile(_FIELD.format("instance-id"))
_SEEDS_NAME = re.compile(_FIELD.format("local-hostname"))


class CloudInit(Item):
    name = "cloud_init"
    only_renews = True

    def observe(self, ctx: Context) -> Observed:
        old = _find_id(ctx)
        if not old:
            return None, {}
        if _find_seeds(ctx, old):
            return old.encode(), {}
        return b"", {
            "given_by": (files.find_text(ctx.path(f"{_LINK}/datasource")) or "").strip() or "outside"
        }

    def reset(self, ctx: Context) -> Details:
        old = _find_id(ctx)
        seeds = _find_seeds(ctx, old) if old else []
        if not seeds:
            return {}
        new = render_uuid(ctx.kernel.draw(16))
        for name, text in seeds:
            text = _SEEDS_ID.sub(lambda match: match[1] + new, text)
            ctx.rewrite(name, _SEEDS_NAME.sub(lambda match: match[1] + (ctx.hostname or match[2]), text))
        folder = ctx.path(f"{_BASE}/instances/{old}")
        if os.path.isdir(folder):
            files.remove(f"{folder}/obj.pkl")
            os.rename(folder, ctx.path(f"{_BASE}/instances/{new}"))
            ctx.touched.append(ctx.path(f"{_BASE}/instances/{new}"))
        ctx.rewrite(_ID, new + "\n")
        for name in _RUNNING:
            found = files.find_text(ctx.path(name)) or ""
            if old in found:
                ctx.rewrite(name, found.replace(old, new))
        if os.path.islink(ctx.path(_LINK)):
            files.replace_link(ctx.path(_LINK), f"{_BASE}/instances/{new}")
        return {}


def _find_id(ctx: Context) -> str:
    """Return the id on file; "" where there is none, or one that every machine has."""
    found = (files.find_text(ctx.path(_ID)) or "").strip()
    return "" if found.startswith(_CONSTANT) else found


def _find_seeds(ctx: Context, id: str) -> list[tuple[str, str]]:
    """Return name and text of the metadata on this disk that tells this id."""
    texts = [(f"{folder}/meta-data", files.find_text(ctx.path(f"{folder}/meta-data"))) for folder in _SEEDS]
    return [
        (name, text)
        for name, text in texts
        if text and id in [match[2] for match in _SEEDS_ID.finditer(text)]
    ]


ITEM = CloudInit
