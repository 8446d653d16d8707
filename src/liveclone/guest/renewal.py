"""Renew the identity items of a clone, and report each: what it was, what it is, what went wrong, how long it took.

A report is a plain dict, `model.identity.ItemReport` on the host. An item that fails is a report that says so.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from .context import Context
from .errors import CannotChange, log_exception
from .items import Fixed, Item
from .request import elapsed_ms
from .workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Report = dict[str, Any]

_CANNOT_CHANGE = (errno.EROFS, errno.EBUSY, errno.EPERM)


def reset_all(ctx: Context, workers: Workers, items: list[Item]) -> list[Report]:
    """Reset by rising order; within one, what is slow goes to threads of its own while the rest is done here."""
    reports: dict[str, Report] = {}
    for order in sorted({item.order for item in items}):
        together = [item for item in items if item.order == order]
        slow = [item for item in together if item.slow]
        done = threading.Semaphore(0)
        for item in slow:
            workers.submit(_reset_into(reports, ctx, item, done), urgent=ctx.request.urgent)
        for item in together:
            if item not in slow:
                reports[item.name] = reset(ctx, item)
        for _ in slow:
            done.acquire()
    return [reports[item.name] for item in items]


def _reset_into(
    reports: dict[str, Report], ctx: Context, item: Item, done: threading.Semaphore
) -> Callable[[], None]:
    def work() -> None:
        try:
            reports[item.name] = reset(ctx, item)
        finally:
            done.release()

    return work


def observe(ctx: Context, item: Item) -> Report:
    """Report an item without touching it."""
    report = _new_report(item)
    began = time.monotonic_ns()
    with ctx.request.step(f"item {item.name}"):
        try:
            value, report["details"] = item.observe(ctx)
            report["status"] = _status_unchanged(item, value)
            report["before"] = ctx.digest(item.name, value or b"")
        except Exception as error:
            _note_failure(report, item, error)
    report["took_ms"] = elapsed_ms(began)
    return report


def reset(ctx: Context, item: Item) -> Report:
    """Give an item its new value, and report what it was and is."""
    report = _new_report(item)
    began = time.monotonic_ns()
    with ctx.request.step(f"item {item.name}"):
        try:
            before, details = item.observe(ctx)
            report["before"] = ctx.digest(item.name, before or b"")
            if not item.resettable:
                report["status"], report["details"] = _status_unchanged(item, before), details
                return report
            if before is None and item.only_renews:
                report["status"], report["details"] = "absent", details
                return report
            told = item.reset(ctx)
            if item.pending and before is not None:
                report["status"], report["details"] = "pending", dict(details, **told)
                return report
            after, details = item.observe(ctx)
            report["after"] = ctx.digest(item.name, after or b"")
            report["details"] = dict(details, **told)
            if before is None and after is None:
                report["status"] = "absent"
            elif item.configured or not (before or after):
                report["status"] = "configured"
            else:
                report["status"] = "kept" if before == after else "changed"
        except CannotChange as error:
            report["status"], report["error"] = "shared", str(error)
        except OSError as error:
            _note_failure(report, item, error)
            if error.errno in _CANNOT_CHANGE:
                report["status"] = "shared"
        except Exception as error:
            _note_failure(report, item, error)
        finally:
            report["took_ms"] = elapsed_ms(began)
    return report


def _status_unchanged(item: Item, value: bytes | None) -> str:
    if value is None:
        return "absent"
    return "shared" if isinstance(item, Fixed) else "present"


def _new_report(item: Item) -> Report:
    return {
        "item": item.name,
        "required": item.required,
        "status": "failed",
        "before": "",
        "after": "",
        "took_ms": 0.0,
        "details": {},
        "error": "",
    }


def _note_failure(report: Report, item: Item, error: Exception) -> None:
    log_exception(f"item {item.name}")
    report["status"], report["error"] = "failed", f"{type(error).__name__}: {error}"
