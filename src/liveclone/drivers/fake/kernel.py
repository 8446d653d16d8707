"""The system calls that change a whole machine, and the state behind them; stands in for guest/kernel.py."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any


class FakeKernel:
    """One machine's. It has no VMGENID: a copy that is not given entropy draws the same numbers as its original."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = os.urandom(32)
        self._hostname = ""
        self._ahead_ns = 0  # this guest's clock minus the host's
        self._stood_at_ns = 0  # this guest's time when it was stopped
        self.interfaces: Callable[[], list[tuple[str, str, list[str]]]] = list

    def state(self) -> dict[str, Any]:
        return {"pool": self._pool.hex(), "hostname": self._hostname, "stood_at_ns": self._stood_at_ns}

    def load(self, state: dict[str, Any]) -> None:
        self._pool = bytes.fromhex(state["pool"])
        self._hostname = state["hostname"]
        self._stood_at_ns = state["stood_at_ns"]

    def stand_still(self) -> None:
        self._stood_at_ns = self.realtime_ns()

    def go_on(self) -> None:
        if self._stood_at_ns:
            self._ahead_ns = self._stood_at_ns - time.time_ns()

    def hostname(self) -> str:
        return self._hostname

    def set_hostname(self, name: str) -> None:
        self._hostname = name

    def realtime_ns(self) -> int:
        return time.time_ns() + self._ahead_ns

    def set_realtime_ns(self, now_ns: int) -> None:
        self._ahead_ns = now_ns - time.time_ns()

    def end_connections(self) -> tuple[int, list[tuple[str, int]]]:
        return 0, []  # this guest has no network of its own

    def bind(self, file: str, target: str) -> None:
        raise OSError("a fake guest mounts nothing")  # and has nothing that would be bound over

    def vsock_cid(self) -> int | None:
        return None

    def hang_up(self, terminal: str) -> None:
        raise OSError("a fake guest has no terminal")  # and nobody logged in

    def forget_tracked(self) -> None:
        pass

    def remove_leased(self) -> int:
        return 0

    def systemctl(self, *words: str) -> tuple[int, str]:
        return (3, "inactive") if words[0] == "is-active" else (0, "")  # this guest has no services

    def clean(self, go_on: Callable[[], None]) -> dict[str, Any]:
        return {"disks": [], "memory_bytes": 0}

    def renew(self, environment: dict[str, str]) -> None:
        """Go on: this agent is a part of its machine's process."""

    def draw(self, count: int) -> bytes:
        with self._lock:
            drawn = hashlib.shake_256(self._pool + b"draw").digest(count)
            self._pool = hashlib.sha256(self._pool + b"next").digest()
        return drawn

    def add_entropy(self, seed: bytes, uncredited: bytes) -> None:
        with self._lock:
            self._pool = hashlib.sha256(self._pool + seed + uncredited).digest()
