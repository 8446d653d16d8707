"""Locks between processes: who waits, who is told whom to wait for, and that a dead holder holds nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from liveclone.errors import Conflict, StoreError
from liveclone.host import locks

HOLDER = """
import sys
from pathlib import Path
from liveclone.host import locks
with locks.hold(Path(sys.argv[1]), "snapshot of web", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(path: Path, kind: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock; it lets go when its standard input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        assert child.stdin is not None
        child.stdin.close()


def test_the_second_is_told_who_is_first(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "x"
    with other_process(path) as child:
        with pytest.raises(Conflict) as caught, locks.hold(path, "removal of web"):
            pytest.fail("held twice")
        assert caught.value.code == "busy"
        assert "snapshot of web" in caught.value.message
        assert str(child.pid) in caught.value.seen
        assert caught.value.tried == "removal of web"
        assert locks.is_held(path)
    assert not locks.is_held(path)
    with locks.hold(path, "removal of web"):
        assert locks.is_held(path)


def test_a_lock_that_was_never_taken_is_free(tmp_path: Path) -> None:
    assert not locks.is_held(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with other_process(path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        with locks.hold(path, "next"):
            pass


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with other_process(path) as child:
        assert child.stdin is not None
        threading.Timer(0.2, child.stdin.close).start()
        with locks.hold(path, "next", deadline_s=20):
            assert path.read_text() == f"{os.getpid()} next"


def test_a_deadline_passes_and_leaves_the_lock_to_others(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with other_process(path):
        begin = time.monotonic()
        with pytest.raises(Conflict), locks.hold(path, "next", deadline_s=0.2):
            pytest.fail("held twice")
        assert 0.2 <= time.monotonic() - begin < 5
    with locks.hold(path, "next", deadline_s=10):  # he who gave up has let go of it
        pass


def test_some_hold_it_together_and_none_alone_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with other_process(path, "shared"):
        with locks.hold(path, "clone", shared=True):
            assert not locks.is_held(path)
        with pytest.raises(Conflict), locks.hold(path, "removal"):
            pytest.fail("held alone")
    with locks.hold(path, "removal"), pytest.raises(Conflict), locks.hold(path, "clone", shared=True):
        pytest.fail("held together")


def test_the_event_loop_goes_on_while_one_waits(tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def story() -> list[str]:
        order = []
        holding = locks.hold_async(path, "first")
        await holding.__aenter__()

        async def wait() -> None:
            async with locks.hold_async(path, "second", deadline_s=20):
                order.append("second")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        order.append("first")
        await holding.__aexit__(None, None, None)
        await waiting
        return order

    assert asyncio.run(story()) == ["first", "second"]


def test_to_wait_can_be_cancelled_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def story() -> None:
        async def wait() -> None:
            async with locks.hold_async(path, "second", deadline_s=3600):
                pytest.fail("held twice")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)  # it is at the lock
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with other_process(path):
        begin = time.monotonic()
        asyncio.run(story())  # also ends all threads that asyncio knows
        assert time.monotonic() - begin < 10
    with locks.hold(path, "next", deadline_s=10):
        pass


def test_an_asynchronous_deadline_passes(tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def story() -> None:
        async with locks.hold_async(path, "second", deadline_s=0.1):
            pytest.fail("held twice")

    with other_process(path), pytest.raises(Conflict):
        asyncio.run(story())


def test_nothing_is_left_open(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    with locks.hold(tmp_path / "x", "one"), pytest.raises(Conflict), locks.hold(tmp_path / "x", "two"):
        pass
    assert count() == before


def test_a_lock_that_cannot_be_opened_is_an_error_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught, locks.hold(tmp_path / "file" / "x", "one"):
        pytest.fail("held")
    assert caught.value.on == str(tmp_path / "file" / "x")


WATCHER = """
import sys
from pathlib import Path
from liveclone.host import locks
path = Path(sys.argv[1])
print("looking", flush=True)
while True:
    locks.is_held(path)
"""


def test_to_look_at_a_lock_takes_it_from_nobody(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with locks.hold(path, "first"):
        pass
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "looking\n"
        try:
            for _ in range(3000):
                with locks.hold(path, "next"):
                    pass
        finally:
            watcher.kill()


def test_a_lock_that_is_held_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert locks.remove(path), "there is none"
    for kind in ("alone", "shared"):
        with other_process(path, kind):
            assert not locks.remove(path)
            assert path.exists()
        assert locks.remove(path)
        assert not path.exists()


@pytest.mark.parametrize("shared", [False, True])
def test_who_waited_for_a_lock_that_was_removed_holds_the_one_that_is_there(
    tmp_path: Path, shared: bool
) -> None:
    path = tmp_path / "x"
    has_it, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        with locks.hold(path, "second", deadline_s=20, shared=shared):
            has_it.set()
            go_on.wait(20)

    waiting = threading.Thread(target=wait)
    with locks.hold(path, "first"):
        waiting.start()
        wait_for_who_waits(path)
        path.unlink()
    try:
        assert has_it.wait(20)
        with pytest.raises(Conflict), locks.hold(path, "third"):
            pytest.fail("held beside the second")
    finally:
        go_on.set()
        waiting.join()
    assert count_open(path) == 0


def test_the_event_loop_waits_likewise(tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def story() -> None:
        async def wait() -> None:
            async with locks.hold_async(path, "second", deadline_s=20):
                assert locks.is_held(path)

        async with locks.hold_async(path, "first"):
            waiting = asyncio.create_task(wait())
            await asyncio.to_thread(wait_for_who_waits, path)
            path.unlink()
        await waiting

    asyncio.run(story())
    assert not locks.is_held(path)


def wait_for_who_waits(path: Path) -> None:
    """Wait until three descriptors lead to the lock: the holder's, the other's, and the one with which that waits."""
    while count_open(path) < 3:
        os.sched_yield()


def count_open(path: Path) -> int:
    """Return how many descriptors of ours lead to a file of this name, or to one that had it."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(fd.readlink()).removesuffix(" (deleted)") == str(path)
    return count
