"""The driver's side of a QMP connection, against a socket that answers as QEMU does at rare moments."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import Message

from liveclone.drivers.qemu import disk
from liveclone.drivers.qemu.handle import QemuHandle
from liveclone.drivers.qemu.session import open_session
from liveclone.errors import HypervisorError, Interrupted
from liveclone.host import process, unix_socket
from liveclone.model.machine import Hardware, MachineState
from liveclone.units import MIB

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}
}


class Monitor:
    """Answers QMP: each command with the next of its answers, the last one again and again; None hangs up.

    An answer's "then" is a list of events that follow it. One event overtakes the greeting of each of the first
    `overtaking` connections, and one the first answer.
    """

    def __init__(self, **answers: list[dict[str, Any] | None]) -> None:
        self.answers = {name.replace("_", "-"): found for name, found in answers.items()}
        self.asked: list[str] = []
        self.overtaking = 0

    async def serve(self, listening: socket.socket) -> None:
        """Answer one client until it goes."""
        reader, writer = await self._accept(listening)
        for _ in range(self.overtaking):
            await self._say(writer, event("RTC_CHANGE", offset=0))
            writer.close()
            reader, writer = await self._accept(listening)
        await self._say(writer, GREETING)
        while data := await reader.read(65536):  # one command at a time, and no end of line behind it
            question = json.loads(data)
            self.asked.append(question["execute"])
            answers = self.answers.get(question["execute"].replace("_", "-"), [{"return": {}}])
            answer = answers.pop(0) if answers[1:] else answers[0]
            if answer is None:
                break
            if self.overtaking and self.asked == ["qmp_capabilities"]:
                await self._say(writer, event("RTC_CHANGE", offset=0))
            events = answer.get("then", [])
            await self._say(writer, {"id": question["id"]} | {k: v for k, v in answer.items() if k != "then"})
            for follower in events:
                await self._say(writer, follower)
        writer.close()
        await writer.wait_closed()

    @staticmethod
    async def _accept(listening: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client, _ = await asyncio.get_running_loop().sock_accept(listening)
        return await asyncio.open_connection(sock=client)

    @staticmethod
    async def _say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\r\n")
        await writer.drain()


async def ask(
    monitor: Monitor, folder: Path, work: Callable[[QemuHandle], Awaitable[None]], pid: int = 1
) -> None:
    """Do `work` with a machine whose QEMU is `monitor`, and whose process is `pid`."""
    with unix_socket.listen(folder / "qmp") as listening:
        listening.setblocking(False)
        serving = asyncio.create_task(monitor.serve(listening))
        try:
            session = await open_session("web", folder / "qmp", folder / "qemu.log")
            try:
                await work(
                    QemuHandle("web", folder, Hardware(ram_bytes=128 * MIB), process.ref(pid), session)
                )
            finally:
                await session.close()
        finally:
            await asyncio.wait_for(serving, 10.0)


def status(word: str) -> dict[str, Any]:
    return {"return": {"status": word, "running": word == "running"}}


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}


def refusal(words: str) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": words}}


def test_a_machine_whose_migration_is_just_over_runs_again(tmp_path: Path) -> None:
    monitor = Monitor(
        cont=[refusal("Migration is not finalized yet"), {"return": {}}],
        query_status=[status("finish-migrate"), status("finish-migrate"), status("postmigrate")],
    )
    asyncio.run(ask(monitor, tmp_path, QemuHandle.resume))
    asked = monitor.asked[monitor.asked.index("cont") :]
    assert asked == ["cont", "query-status", "query-status", "query-status", "cont"]


def test_events_in_front_of_the_greeting_and_the_first_answer_are_not_taken_for_them(tmp_path: Path) -> None:
    monitor = Monitor(query_status=[status("running")])
    monitor.overtaking = 2

    async def work(handle: QemuHandle) -> None:
        assert await handle.state() is MachineState.RUNNING

    asyncio.run(ask(monitor, tmp_path, work))
    assert monitor.asked == ["qmp_capabilities", "query-status"]


def test_messages_are_not_rendered_for_a_log_that_nobody_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Message] = []

    def render(message: Message) -> str:
        rendered.append(message)
        return ""

    monkeypatch.setattr(Message, "__str__", render)

    async def work(handle: QemuHandle) -> None:
        assert await handle.state() is MachineState.RUNNING

    asyncio.run(ask(Monitor(query_status=[status("running")]), tmp_path, work))
    assert rendered == []


def test_a_machine_that_refuses_the_first_command_is_an_error(tmp_path: Path) -> None:
    monitor = Monitor(qmp_capabilities=[refusal("not today")])
    with pytest.raises(Interrupted) as caught:
        asyncio.run(ask(monitor, tmp_path, QemuHandle.resume))
    assert "not today" in caught.value.seen


def test_a_machine_that_may_not_run_is_an_error_with_qemus_words(tmp_path: Path) -> None:
    monitor = Monitor(
        cont=[refusal("Resetting the Virtual Machine is required")], query_status=[status("shutdown")]
    )
    with pytest.raises(HypervisorError) as caught:
        asyncio.run(ask(monitor, tmp_path, QemuHandle.resume))
    assert "Resetting" in caught.value.seen


def test_a_machine_that_ends_before_it_answers_has_been_switched_off(tmp_path: Path) -> None:
    monitor = Monitor(system_powerdown=[None])
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:

        async def switch_off(handle: QemuHandle) -> None:
            child.kill()
            await handle.power_down(30.0)

        asyncio.run(ask(monitor, tmp_path, switch_off, child.pid))


JOB = {"device": "thaw-new", "type": "commit", "len": 1, "offset": 0, "speed": 0}


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_layer_that_cannot_be_written_back_is_an_error_at_once(tmp_path: Path, is_ready: bool) -> None:
    failed = event("BLOCK_JOB_COMPLETED", **JOB, error="No space left on device")
    ready = event("BLOCK_JOB_READY", **JOB)
    others = event("BLOCK_JOB_COMPLETED", **JOB | {"device": "another"})
    monitor = Monitor(
        block_commit=[{"return": {}, "then": [others, ready if is_ready else failed]}],
        job_complete=[{"return": {}, "then": [failed]}],
    )

    async def work(handle: QemuHandle) -> None:
        with pytest.raises(HypervisorError) as caught:
            await asyncio.wait_for(disk.thaw(handle.session, "new", "old"), 10.0)
        assert caught.value.seen == "No space left on device"

    asyncio.run(ask(monitor, tmp_path, work))
    assert monitor.asked == ["qmp_capabilities", "block-commit", *["job-complete"] * is_ready]


def test_a_lost_connection_to_a_machine_that_lives_is_told(tmp_path: Path) -> None:
    monitor = Monitor(system_powerdown=[None])
    with pytest.raises(Interrupted):
        asyncio.run(ask(monitor, tmp_path, lambda handle: handle.power_down(0.1)))


def test_a_process_that_ends_before_its_state_is_loaded_is_told_in_our_words(tmp_path: Path) -> None:
    async def work(handle: QemuHandle) -> None:
        with pytest.raises(Interrupted) as caught:
            await handle.connect_early(tmp_path / "gone")
        assert caught.value.code == "qmp-lost"

    asyncio.run(ask(Monitor(), tmp_path, work))
