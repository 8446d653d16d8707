"""What the stock QEMU guest agent may not do is said first. The rest is shown in tests/vm/test_agent_install.py."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, cast

import pytest

from liveclone.drivers.base import FixedPorts, Handle
from liveclone.engine.stock_agent import StockAgent
from liveclone.errors import GuestError, TimedOut, Unsupported
from tests.machines import check_clear


class Answers(FixedPorts):
    """A machine whose stock agent says what it was told to say."""

    name = "shop"

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def ask_stock_agent(self, command: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        self.asked.append((command, arguments))
        found = self.answers[command]
        return found.pop(0) if isinstance(found, list) else found


def stock(handle: Answers) -> StockAgent:
    return StockAgent(cast(Handle, handle), "shop")


def info(**enabled: bool) -> dict[str, Any]:
    commands = [{"name": name.replace("_", "-"), "enabled": on} for name, on in enabled.items()]
    return {"version": "9.1.0", "supported_commands": commands}


def test_it_may_run_programs() -> None:
    handle = Answers(guest_info=info(guest_exec=True, guest_exec_status=True))
    assert asyncio.run(stock(handle).check()) == "9.1.0"


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (info(guest_exec=False, guest_exec_status=False), "guest-exec is switched off"),
        (info(guest_exec=True, guest_exec_status=False), "guest-exec-status is switched off"),
        (info(guest_ping=True), "guest-exec is not known to it"),
    ],
)
def test_it_may_not_run_programs(answer: dict[str, Any], seen: str) -> None:
    with pytest.raises(Unsupported) as caught:
        asyncio.run(stock(Answers(guest_info=answer)).check())
    assert (caught.value.code, caught.value.seen) == ("no-guest-exec", seen)
    check_clear(caught.value, source_state="not touched")


def test_a_machine_whose_ports_are_fixed_has_none() -> None:
    with pytest.raises(Unsupported) as caught:
        asyncio.run(FixedPorts.ask_stock_agent(Answers(), "guest-info", {}, 1.0))
    assert caught.value.code == "no-stock-agent"


def test_a_program_is_waited_for() -> None:
    running = {"exited": False}
    out = base64.b64encode(b"12\n").decode()
    ended = {"exited": True, "exitcode": 0, "out-data": out, "out-truncated": False}
    handle = Answers(guest_exec={"pid": 7}, guest_exec_status=[running, running, ended])
    assert asyncio.run(stock(handle).must(["wc", "-c"], "counting", given=b"x" * 12, deadline_s=9)) == "12\n"
    assert handle.asked[0][1]["input-data"] == base64.b64encode(b"x" * 12).decode()
    assert [command for command, _ in handle.asked].count("guest-exec-status") == 3


def test_a_program_that_fails_has_the_last_word() -> None:
    err = base64.b64encode(b"first\nread-only file system\n").decode()
    handle = Answers(
        guest_exec={"pid": 7}, guest_exec_status={"exited": True, "exitcode": 1, "err-data": err}
    )
    with pytest.raises(GuestError) as caught:
        asyncio.run(stock(handle).must(["sh"], "installing", deadline_s=9))
    assert caught.value.seen.endswith("read-only file system")


def test_one_that_a_signal_ended_and_one_that_does_not_end() -> None:
    killed = Answers(guest_exec={"pid": 7}, guest_exec_status={"exited": True, "signal": 9})
    assert asyncio.run(stock(killed).run(["sh"], deadline_s=9)).code == 137
    running = Answers(guest_exec={"pid": 7}, guest_exec_status={"exited": False})
    with pytest.raises(TimedOut) as caught:
        asyncio.run(stock(running).run(["sh"], deadline_s=0.1))
    assert caught.value.code == "guest-exec-deadline"
