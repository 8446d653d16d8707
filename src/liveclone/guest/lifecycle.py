"""The calls around a snapshot: observe, prepare, identify (in a clone), resume (in the source).

    source    observe* ── prepare ──────┬── resume ── (runs on)
                          (snapshot)    └┄┄ identify ── (a clone, later, any number of times)

One of prepare, identify and resume runs at a time. identify and resume may be asked again after a lost reply:
the same generation gives the same reply and changes nothing a second time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import files, generation, parameters, renewal, restart, scrubbed
from .context import Context
from .errors import CallError, log_exception
from .hooks import check_hooks, find_hooks, run_hooks
from .items import Fixed, Item
from .kernel import Kernel
from .priority import Others
from .request import Request, elapsed_ms
from .subscribers import Answer, Subscribers, check_answers
from .workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Report = dict[str, Any]

_SETTLE_S = 3.0  # how long others wait at the most, as in a machine that is given no network
_ANSWERS = (
    0.9  # share of the time left that applications have: the reply that names who was silent needs some too
)
_INIT = 1  # the process that starts services


class Lifecycle:
    """Runs the items and hooks of one guest."""

    def __init__(
        self,
        root: str,
        kernel: Kernel,
        items: list[Item],
        workers: Workers,
        subscribers: Subscribers,
        on_identify: Callable[[], None] = lambda: None,
    ) -> None:
        self.items = items
        self._root = root
        self._kernel = kernel
        self._workers = workers
        self._subscribers = subscribers
        self._on_identify = on_identify
        self.settled = threading.Event()  # the machine has its network: what is left may take processor time
        self._others = Others(root)
        self._turn = threading.Lock()
        self._holder = ""
        self._last: dict[str, Any] = {}  # the latest identify or resume: its key and its result

    def observe(self, request: Request) -> dict[str, Any]:
        """Report the items named (all without names) without touching them."""
        names = request.args.get("items")
        if names is not None and not set(names) <= {item.name for item in self.items}:
            raise CallError(
                "unknown-item", f"this agent has no {sorted(set(names) - {i.name for i in self.items})}"
            )
        ctx = self._context(request)
        return {
            "items": [
                renewal.observe(ctx, item) for item in self.items if names is None or item.name in names
            ]
        }

    def find_shared(self, request: Request) -> list[Fixed]:
        """Return the items that every clone will share, and that are not harmless."""
        ctx = self._context(request)
        fixed = [item for item in self.items if isinstance(item, Fixed) and item.hazard]
        return [item for item in fixed if item.observe(ctx)[0] is not None]

    def prepare(self, request: Request) -> dict[str, Any]:
        """Report all items and let the applications prepare; if one cannot, all of them are told to go on."""
        ctx = self._context(request)
        with self._only("prepare", request):
            if not generation.load(self._root)["uuid"]:  # it was booted by others, or by itself
                generation.store(
                    self._root, generation.first(self._kernel.draw(16))
                )  # so a clone knows that it is one
            try:
                answers = self._subscribers.tell(ctx, "prepare")
                hooks = run_hooks(ctx, "prepare")
                applications = self._gather(ctx, answers)
                check_hooks("prepare", hooks)
                check_answers("prepare", applications)
                self.warm(request)
                reports = [renewal.observe(ctx, item) for item in self.items]
            except Exception as error:
                undo = self._call_off(ctx)
                if isinstance(error, CallError):
                    error.more["undo"] = undo
                raise
            # Its card goes and comes again: what only watches that must not keep the source's programs waiting.
            self._others.put_last(housekeeping=True)
            self._workers.submit(self._put_back_in_time)
            return {"items": reports, "hooks": hooks, "applications": applications}

    def _call_off(self, ctx: Context) -> list[dict[str, Any]]:
        """Let the applications go on after a `prepare` that failed; return what the hooks say."""
        answers = self._subscribers.tell(ctx, "resumed")
        if ctx.request.answered:  # its deadline has passed: there is no time left to run anything
            return []
        hooks = run_hooks(ctx, "resumed")
        self._gather(ctx, answers)
        return hooks

    def identify(self, request: Request) -> dict[str, Any]:
        """Give this machine, a clone, an identity of its own.

        Until it has its network, or would have had it by now, the other programs of the guest wait.
        """
        items = [item for item in self.items if item.resettable or isinstance(item, Fixed)]
        return self._renew(request, "identify", "cloned", items)

    def resume(self, request: Request) -> dict[str, Any]:
        """Give this machine, the source, a new generation and fresh randomness."""
        return self._renew(request, "resume", "resumed", [item for item in self.items if item.for_source])

    def warm(self, request: Request) -> None:
        """Touch what a reset will need. A failure here is no failure of the call."""
        ctx = self._context(request)
        self._others.look()
        for item in self.items:
            with ctx.request.step(f"warming item {item.name}"):
                try:
                    item.warm(ctx)
                except Exception:
                    log_exception(f"warming item {item.name}")

    def go_on(self) -> None:
        """Put back what waits for this agent, which is about to become a new process."""
        self._others.put_back()

    def _renew(self, request: Request, call: str, event: str, items: list[Item]) -> dict[str, Any]:
        ctx = self._context(request)
        ctx.generation = generation.check(request.args.get("generation"))
        with self._only(call, request):
            asked = (call, ctx.generation["uuid"])
            if self._last.get("asked") == asked:
                return dict(self._last["result"])
            self.settled.clear()
            if call == "identify":
                self._others.put_last(but=self._find_busy(request))
                self._on_identify()
            try:
                result = self._reset(ctx, items, event)
            except BaseException:
                self._others.put_back()
                raise
            self._last = {"asked": asked, "result": result}
            return result

    def _find_busy(self, request: Request) -> set[int]:
        """Return the processes that have to do something before a clone is ready."""
        is_programmed = (
            restart.find_units(self._root)
            or find_hooks(self._root, "cloned")
            or request.args.get("user_data")
        )
        return self._subscribers.pids() | ({_INIT} if is_programmed else set())

    def _reset(self, ctx: Context, items: list[Item], event: str) -> dict[str, Any]:
        reports = renewal.reset_all(ctx, self._workers, [item for item in items if item.order == 0])
        is_clone = event == "cloned" and generation.load(self._root)["uuid"] != ""  # else it has just booted
        generation.store(self._root, ctx.generation)
        reports += renewal.reset_all(ctx, self._workers, [item for item in items if item.order > 0])
        if event == "cloned":
            with ctx.request.step("applying the clone's parameters"):
                parameters.apply(ctx)
        # Files were replaced without a sync. Until it, a clone that loses its power comes back with what its disk
        # says: its source's identity.
        ctx.request.later += [
            *([self._settle] if event == "cloned" else []),
            lambda: files.sync(ctx.touched),
            *([self._others.put_back, self._finish_scrub] if event == "cloned" else []),
            *ctx.later,
        ]
        answers = self._subscribers.tell(ctx, event)
        hooks = run_hooks(ctx, event)
        return {
            "items": reports,
            "hooks": hooks,
            "restarts": restart.restart_units(ctx) if is_clone else [],
            "applications": self._gather(ctx, answers),
            "generation": ctx.generation,
            "took_ms": elapsed_ms(ctx.request.read_at_ns),
        }

    def _gather(self, ctx: Context, answers: list[Answer]) -> list[dict[str, Any]]:
        if not answers:
            return []
        with ctx.request.step("applications"):
            return self._subscribers.gather(answers, ctx.request.remaining_s() * _ANSWERS)

    def _settle(self) -> None:
        self.settled.wait(_SETTLE_S)

    def _finish_scrub(self) -> None:
        scrubbed.finish(self._root, self._kernel)

    def _put_back_in_time(self) -> None:
        """End a source's `prepare`, whatever becomes of the snapshot, and when what was put off has been done meanwhile."""
        time.sleep(_SETTLE_S)
        self._others.put_back()

    def _context(self, request: Request) -> Context:
        return Context(self._root, self._kernel, request, bytes.fromhex(request.args.get("key") or ""))

    @contextmanager
    def _only(self, call: str, request: Request) -> Iterator[None]:
        if not self._turn.acquire(timeout=request.remaining_s() / 2):
            raise CallError("busy", f"{self._holder} still runs")
        self._holder = call
        try:
            yield
        finally:
            self._turn.release()
