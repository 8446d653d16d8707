"""What the user gives this clone: SSH keys, user data, metadata. (Host name and address are items, as all have them.)

    /root/.ssh/authorized_keys      the keys are added to what is there
    /var/lib/liveclone/user-data    for hooks (LIVECLONE_USER_DATA) and programs, readable by root alone. What begins
                                    with `#!` is run, after all `cloned` hooks and as one of them (guest/hooks.py)
    /var/lib/liveclone/metadata.json
                                    names and their texts, one object, for hooks (LIVECLONE_METADATA) and every program

A clone without user data or metadata of its own does not keep its source's.
"""

from __future__ import annotations

import json
import os

from . import files
from .context import Context

USER_DATA = "/var/lib/liveclone/user-data"
METADATA = "/var/lib/liveclone/metadata.json"
_KEYS = "/root/.ssh/authorized_keys"


def apply(ctx: Context) -> None:
    """Put what the host gives to its places.

    Raises:
        OSError: something could not be written; the host is told and does not connect the clone.
    """
    keys = [str(key) for key in ctx.request.args.get("ssh_keys") or ()]
    if keys:
        _add_keys(ctx, keys)
    text = str(ctx.request.args.get("user_data") or "")
    _keep(ctx, USER_DATA, text, 0o700 if text.startswith("#!") else 0o600)
    metadata = ctx.request.args.get("metadata") or {}
    _keep(ctx, METADATA, json.dumps(metadata, indent=2, sort_keys=True) + "\n" if metadata else "", 0o644)


def find_script(ctx: Context) -> str:
    """Return the path of user data that is to be run, or nothing."""
    path = ctx.path(USER_DATA)
    return path if os.access(path, os.X_OK) else ""


def _keep(ctx: Context, name: str, text: str, mode: int) -> None:
    """Write a file that only a machine which was given something has."""
    path = ctx.path(name)
    if text:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        ctx.replace(name, text, mode)
    elif files.remove(path):
        ctx.touched.append(path)


def _add_keys(ctx: Context, keys: list[str]) -> None:
    os.makedirs(os.path.dirname(ctx.path(_KEYS)), mode=0o700, exist_ok=True)
    present = (files.find_text(ctx.path(_KEYS)) or "").splitlines()
    ctx.replace(
        _KEYS, "".join(f"{line}\n" for line in [*present, *(k for k in keys if k not in present)]), 0o600
    )
