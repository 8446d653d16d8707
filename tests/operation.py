"""One operation of the engine in a process of its own, for tests that stop it at a point, or kill it.

    python -m tests.operation '{"do": "snapshot", "with": {"machine": "web"}, "deadlines": {"identify.X_S": 2.0}}'

Prints one JSON object: {"ok": ...}, or {"error": the error's fields}.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from liveclone.engine import clone, refill, remove, repair, run, snapshot
from liveclone.engine.context import Context, open_context
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.errors import LivecloneError
from liveclone.model.snapshot import CaptureMethod


async def take(
    ctx: Context,
    machine: str,
    name: str = "",
    method: str = "",
    scrub: Sequence[str] = (),
    keep_overlay: bool = False,
) -> Any:
    wanted = CaptureMethod(method) if method else None
    scrubbing = Scrubbing(paths=tuple(scrub)) if scrub else None
    request = snapshot.Request(
        machine=machine, name=name, method=wanted, scrub=scrubbing, keep_overlay=keep_overlay
    )
    return (await snapshot.take(ctx, request)).id


async def start_clones(ctx: Context, snapshot: str, **options: Any) -> Any:
    results = await clone.start(ctx, clone.Request(snapshot=snapshot, overcommit=True, **options))
    return [{"name": r.name, "error": r.error and r.error.fields()} for r in results]


async def fill_pool(ctx: Context, snapshot: str, size: int) -> Any:
    return (await refill.set_size(ctx, snapshot, size)).ready


async def start(ctx: Context, machine: str) -> Any:
    return (await run.start(ctx, machine)).id


async def boot(ctx: Context, **request: Any) -> Any:
    return (await run.run(ctx, run.Request(**request))).id


async def stop(ctx: Context, machine: str) -> Any:
    return (await run.stop(ctx, machine, force=True)).id


async def remove_machine(ctx: Context, machine: str) -> Any:
    return (await remove.remove_machine(ctx, machine, force=True)).id


async def settle(ctx: Context) -> Any:
    return await repair.settle_all(ctx)


ACTIONS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "snapshot": take,
    "clone": start_clones,
    "pool": fill_pool,
    "run": boot,
    "start": start,
    "stop": stop,
    "remove": remove_machine,
    "repair": settle,
}


def main(text: str) -> int:
    wanted = json.loads(text)
    for name, value in wanted.get("deadlines", {}).items():
        module, _, constant = name.partition(".")
        setattr(importlib.import_module(f"liveclone.engine.{module}"), constant, value)
    try:
        answer = asyncio.run(ACTIONS[wanted["do"]](open_context(), **wanted["with"]))
    except LivecloneError as error:
        print(json.dumps({"error": error.fields()}))
        return 1
    print(json.dumps({"ok": answer}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
