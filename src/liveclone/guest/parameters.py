"""What the user gives this clone: SSH keys and user data. (Host name and address are items, as every machine has them.)

    /root/.ssh/authorized_keys      the keys are added to what is there
    /var/lib/liveclone/user-data    for hooks (LIVECLONE_USER_DATA) and programs, readable by root alone. What begins
                                    with `#!` is run, after all `cloned` hooks and as one of them (guest/hooks.py)

A clone without user data of its own does not keep its source's.
"""

from __future__ import annotations

import os

from . import files
from .context import Context

USER_DATA = "/var/lib/liveclone/user-data"
_KEYS = "/root/.ssh/authorized_keys"


def apply(ctx: Context) -> None:
    """Put what the host gives to its places.

    Raises:
        OSError: something could not be written; the host is told and does not connect the clone.
    """
    keys = [str(key) for key in ctx.request.args.get("ssh_keys") or ()]
    if keys:
        _add_keys(ctx, keys)
    path = ctx.path(USER_DATA)
    text = str(ctx.request.args.get("user_data") or "")
    if text:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        ctx.replace(USER_DATA, text, 0o700 if text.startswith("#!") else 0o600)
    elif files.remove(path):
        ctx.touched.append(path)


def find_script(ctx: Context) -> str:
    """Return the path of user data that is to be run, or nothing."""
    path = ctx.path(USER_DATA)
    return path if os.access(path, os.X_OK) else ""


def _add_keys(ctx: Context, keys: list[str]) -> None:
    os.makedirs(os.path.dirname(ctx.path(_KEYS)), mode=0o700, exist_ok=True)
    present = (files.find_text(ctx.path(_KEYS)) or "").splitlines()
    ctx.replace(
        _KEYS, "".join(f"{line}\n" for line in [*present, *(k for k in keys if k not in present)]), 0o600
    )
