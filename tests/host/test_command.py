"""Programs are run to their end, and nothing of them is left, whatever happens."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from liveclone.errors import StoreError, TimedOut, Unsupported
from liveclone.host import command


def run(script: str, **options: object) -> str:
    return asyncio.run(command.run(["sh", "-c", script], **{"deadline_s": 30.0, **options}))  # type: ignore[arg-type]


def test_output_and_lines_are_told_apart() -> None:
    lines: list[str] = []
    out = run("echo out; echo one >&2; printf 'two\\rthree' >&2; echo more", on_line=lines.append)
    assert out == "out\nmore\n"
    assert lines == ["one", "two", "three"]


def test_it_reads_what_it_is_given_and_sees_our_environment() -> None:
    assert (
        run("cat; echo $HELLO $HOME", stdin=b"in ", env={"HELLO": "hello"})
        == f"in hello {os.environ['HOME']}\n"
    )
    assert run("exit 0", stdin=b"x" * 1_000_000) == ""
    assert run("cat") == ""


def test_a_failure_has_the_line_to_paste_and_the_last_lines() -> None:
    with pytest.raises(StoreError) as caught:
        run("for i in $(seq 50); do echo line $i >&2; done; exit 3")
    error = caught.value
    assert error.code == "command-failed" and "status 3" in error.message
    assert error.seen.splitlines() == [f"line {number}" for number in range(31, 51)]
    assert error.tried == "sh -c 'for i in $(seq 50); do echo line $i >&2; done; exit 3'"


def test_another_class_of_error_may_be_asked_for() -> None:
    with pytest.raises(Unsupported):
        run("exit 1", failure=Unsupported)


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(Unsupported) as caught:
        asyncio.run(command.run(["no-such-program", "-x"], deadline_s=1, package="some-package"))
    assert caught.value.code == "missing-tool"
    assert caught.value.next_step == "apt install some-package"


def test_a_deadline_ends_all_of_it(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut) as caught:
        run(f"echo waiting >&2; sleep 1000 & echo $! > {tmp_path}/pid; wait", deadline_s=0.5)
    assert time.monotonic() - began < command.GRACE_S
    assert caught.value.seen == "waiting"
    assert_ended(tmp_path / "pid")


def test_what_takes_no_notice_of_a_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GRACE_S", 0.2)
    with pytest.raises(TimedOut):
        run(f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done", deadline_s=0.5)
    assert_ended(tmp_path / "pid")


def test_cancelling_ends_it(tmp_path: Path) -> None:
    async def story() -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        script = f"echo $$ > {tmp_path}/pid; echo up > {fifo}; sleep 1000"
        work = asyncio.create_task(command.run(["sh", "-c", script], deadline_s=60))
        await asyncio.to_thread(fifo.read_text)  # until it is up
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(story())
    assert_ended(tmp_path / "pid")


def test_cancelling_while_it_is_being_started_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec
    works: list[asyncio.Task[str]] = []

    async def start_late(*argv: Any, **options: Any) -> asyncio.subprocess.Process:
        child = await start(*argv, **options)
        await asyncio.to_thread((tmp_path / "fifo").read_text)  # it is up, and nobody has been told
        works[0].cancel()
        await asyncio.sleep(0)
        return child

    async def story() -> None:
        script = f"echo $$ > {tmp_path}/pid; echo up > {tmp_path}/fifo; sleep 1000"
        works.append(asyncio.create_task(command.run(["sh", "-c", script], deadline_s=60)))
        with pytest.raises(asyncio.CancelledError):
            await works[0]

    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_late)
    asyncio.run(story())
    assert_ended(tmp_path / "pid")


def assert_ended(file: Path) -> None:
    pid = int(file.read_text())
    # A grandchild is not ours to wait for: killed, it may be a zombie until its new parent looks.
    stat = Path(f"/proc/{pid}/stat")
    state = stat.read_text().rsplit(")", 1)[1].split()[0] if stat.exists() else "gone"
    assert state in ("gone", "Z", "X"), f"process {pid} is still there, state {state}"
