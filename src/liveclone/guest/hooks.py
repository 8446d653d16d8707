"""Applications' part: executables in /etc/liveclone/hooks.d/{prepare,cloned,resumed}/, in sorted order.

`prepare` runs before a snapshot, `cloned` in each clone once its identity is new, `resumed` in the source after the
snapshot, and also when a snapshot is called off. A hook sees LIVECLONE_EVENT and, where there is one,
LIVECLONE_SNAPSHOT, LIVECLONE_GENERATION (uuid), LIVECLONE_COUNTER, LIVECLONE_HOSTNAME, LIVECLONE_USER_DATA and
LIVECLONE_METADATA (paths). User data that is a script is a clone's last hook.
"""

from __future__ import annotations

import os
import time

from . import parameters, process
from .context import Context
from .errors import CallError
from .request import elapsed_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = "/etc/liveclone/hooks.d"


def run_hooks(ctx: Context, event: str) -> list[dict[str, Any]]:
    """Run the hooks of `event`, one after the other; return name, exit code, time and, if it failed, output.

    A hook that fails does not keep the others from running: the caller decides what it means.
    """
    folder = ctx.path(f"{FOLDER}/{event}")
    hooks = [(name, f"{folder}/{name}") for name in find_hooks(ctx.root, event)]
    script = parameters.find_script(ctx) if event == "cloned" else ""
    if script:
        hooks.append(("user-data", script))
    return [_run(ctx, event, name, path) for name, path in hooks]


def check_hooks(event: str, reports: list[dict[str, Any]]) -> None:
    """Raise CallError "hook-failed" naming each hook that failed."""
    failed = [report for report in reports if report["code"]]
    if failed:
        told = "; ".join(f"{r['name']} ended with {r['code']}: {r['output']}".rstrip(": ") for r in failed)
        raise CallError("hook-failed", f"hook {event}/{told}", hooks=reports)


def find_hooks(root: str, event: str) -> list[str]:
    """Return the names of the hooks of `event`, in the order in which they run."""
    folder = os.path.join(root, f"{FOLDER}/{event}".lstrip("/"))
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    # what editors and dpkg leave beside a file must not run
    names = [
        n
        for n in names
        if not n.startswith(".") and not n.endswith(("~", ".dpkg-old", ".dpkg-new", ".dpkg-dist"))
    ]
    return [n for n in names if os.path.isfile(f"{folder}/{n}") and os.access(f"{folder}/{n}", os.X_OK)]


def _run(ctx: Context, event: str, name: str, path: str) -> dict[str, Any]:
    began = time.monotonic_ns()
    output = process.Output()
    with ctx.request.step(f"hook {event}/{name}"):
        try:
            child = process.start_for_user(
                [path], env=_environment(ctx, event), stdout=output.fd, stderr=output.fd
            )
            with ctx.request.watched(child):
                code = child.wait()
        finally:
            said = output.tail()
    return {"name": name, "code": code, "took_ms": elapsed_ms(began), "output": said if code else ""}


def _environment(ctx: Context, event: str) -> dict[str, str]:
    facts = {
        "LIVECLONE_SNAPSHOT": str(ctx.request.args.get("snapshot") or ""),
        "LIVECLONE_GENERATION": str(ctx.generation.get("uuid", "")),
        "LIVECLONE_COUNTER": str(ctx.generation.get("counter", "")),
        "LIVECLONE_HOSTNAME": ctx.hostname,
    }
    for variable, path in (
        ("LIVECLONE_USER_DATA", parameters.USER_DATA),
        ("LIVECLONE_METADATA", parameters.METADATA),
    ):
        facts[variable] = path if os.path.exists(ctx.path(path)) else ""
    env = {"PATH": process.PATH, "LANG": "C.UTF-8", "HOME": "/root", "LIVECLONE_EVENT": event}
    env.update((key, value) for key, value in facts.items() if value)
    return env
