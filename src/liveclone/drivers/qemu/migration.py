"""QEMU's migration engine, used to save and load: wait for its end by its own events."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from ...errors import HypervisorError, LivecloneError
from ...host import files
from .session import Session, Watch

ENDS = ("completed", "failed", "cancelled")
UNDER_WAY = ("setup", "active", "pre-switchover", "device", "cancelling")

# All capabilities that we ever switch.
ALL = ("x-ignore-shared", "background-snapshot", "pause-before-switchover", "events")


async def set_abilities(session: Session, *enabled: str) -> None:
    """Switch exactly the given capabilities of ours on, and the others of ours off."""
    wanted = {*enabled, "events"}
    # Off before on: background-snapshot excludes most others, and QEMU checks after every single change.
    ordered = sorted(ALL, key=lambda name: name in wanted)
    await session.call(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": name in wanted} for name in ordered],
    )


async def wait_for_end(watch: Watch, session: Session, what: str, deadline_s: float) -> None:
    """Wait until the migration that was begun under `watch` has completed.

    Raises:
        HypervisorError: it failed; `seen` is QEMU's reason.
        TimedOut, Interrupted: as Watch.until.
    """
    event = await watch.until(has_ended, what, deadline_s)
    if event["data"]["status"] != "completed":
        raise await failure(session, what)


async def failure(session: Session, what: str) -> HypervisorError:
    """Return the error for a migration that failed, with QEMU's reason."""
    try:
        reason = (await session.call("query-migrate")).get("error-desc", "no reason given")
    except LivecloneError as error:
        reason = error.seen or error.message
    return HypervisorError(
        f"QEMU of {session.name} failed at {what}",
        code="migration-failed",
        tried=what,
        on=session.name,
        seen=str(reason),
        next_step=f"liveclone logs {session.name} --qemu",
    )


async def save_state(session: Session, path: Path, deadline_s: float) -> None:
    """Write the state of a machine that stands still to `path`, without shared RAM; it stands still afterwards.

    Raises:
        StoreError: there is no room for it, of which QEMU says no more than "Input/output error". Else as `wait_for_end`.
    """
    what = "saving device state"
    async with session.watch("MIGRATION") as watch:
        await session.call("migrate", uri=f"file:{path}")
        try:
            await wait_for_end(watch, session, what, deadline_s)
        except HypervisorError as error:
            if os.statvfs(path.parent).f_bavail == 0:
                full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                raise files.explain(full, what, path) from error
            raise


async def load_state(session: Session, path: Path, deadline_s: float) -> None:
    """Load device state into a QEMU that waits for it; the machine stands still afterwards."""
    async with session.watch("MIGRATION") as watch:
        await session.call("migrate-incoming", uri=f"file:{path}")
        await wait_for_end(watch, session, "loading device state", deadline_s)


async def give_up(session: Session) -> None:
    """End a migration that is under way, whoever began it; nothing happens when there is none."""
    if (await session.call("query-migrate")).get("status") in UNDER_WAY:
        async with session.watch("MIGRATION") as watch:
            await session.call("migrate_cancel")
            if (await session.call("query-migrate")).get("status") in UNDER_WAY:
                await watch.until(has_ended, "giving up the migration", 10.0)


def has_ended(event: dict[str, Any]) -> bool:
    """Tell whether a MIGRATION event says that the migration is over, well or not."""
    return event["data"]["status"] in ENDS
