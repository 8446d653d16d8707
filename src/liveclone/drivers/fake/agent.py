"""The guest's agent: liveclone.guest itself, on the machine's ports, with `FakeKernel` in place of the system calls.

It is loaded by its name, as the program that it is in a guest; nothing else of ours does that.

NOT HANDLED: a call that the agent is at work on goes on while the machine stands still, and is not in a capture.
Commands of `exec` run on the host, in the folder `root`, and do not survive a handover.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import programs
from .faults import Faults

if TYPE_CHECKING:
    from .guest import Guest

AGENT = __name__.partition(".drivers.")[0] + ".guest"

# Only calls that are known here: a new one might mean the host's system instead of this one.
_SAFE = (
    *("ping", "observe", "scan", "prepare", "identify", "resume", "renew"),
    *("scrub_stop", "scrub_read", "scrub_remove", "scrub_clean", "scrub_restore", "scrub_start"),
)


class Agent:
    """The agent of one guest.

    Args:
        folder: an empty folder for links to the programs that it may start.
    """

    def __init__(self, guest: Guest, folder: Path, faults: Faults) -> None:
        self.guest = guest
        self._programs = folder
        self._faults = faults

    def serve(self, port_fds: list[int]) -> None:
        """Start the agent on its ports."""
        program: Any = importlib.import_module(AGENT + ".main")
        channel: Any = importlib.import_module(AGENT + ".channel")
        process: Any = importlib.import_module(AGENT + ".process")
        process.PATH = str(self._programs)
        programs.link(self._programs)
        agent = program.Agent(str(self.guest.root), self.guest.kernel)
        self.guest.kernel.interfaces = self._interfaces
        for item in agent.lifecycle.items:
            item.reset = self._faults.spoil(item.name, item.reset)
            item.only_renews = item.only_renews and not self._faults.spoils(item.name)
        agent.subscribers.open()
        for name in self._faults.all("app"):
            from . import application  # most machines have none, and starting one has to be quick

            application.start(name, self.guest.root, self._faults)
        calls = {
            name: call for name, call in agent.calls.items() if name.startswith("exec_") or name in _SAFE
        }
        calls |= {"network": self._network, "power": self._power}
        agent.calls = {name: self._asked(name, call) for name, call in calls.items()}
        for fd in port_fds:
            threading.Thread(target=agent.serve, args=(channel.Channel(fd),), daemon=True).start()

    def _asked(self, name: str, call: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def answer(request: Any) -> dict[str, Any]:
            if self._faults.has("die", name):
                os._exit(1)
            if self._faults.has("hang", name):
                threading.Event().wait()
            if name == "exec_start":
                request.args["env"] = {
                    "PATH": os.defpath,
                    "HOME": str(self.guest.root),
                    **(request.args.get("env") or {}),
                }
                request.args["cwd"] = request.args.get("cwd") or str(self.guest.root)
            result = call(request)
            if name in ("identify", "resume", "scrub_remove", "scrub_restore"):
                request.later.append(self.guest.flush)
            if name in ("identify", "resume"):
                result = dict(result, items=self._faults.distort(result["items"]))
            return result

        return answer

    def _network(self, request: Any) -> dict[str, Any]:
        """Give addresses to the cards that were plugged; wait for those that are still to come."""
        wanted = {nic["mac"]: nic["address"] for nic in request.args.get("nics") or []}
        wait_s = min(float(request.args.get("wait_s") or 10.0), request.remaining_s() * 0.9)
        with self.guest.nics_changed:
            if not self.guest.nics_changed.wait_for(lambda: wanted.keys() <= self._cards().keys(), wait_s):
                missing = ", ".join(sorted(wanted.keys() - self._cards().keys()))
                errors: Any = importlib.import_module(AGENT + ".errors")
                raise errors.CallError("no-link", f"no card with MAC {missing} came within {wait_s:g} s")
            for mac, address in wanted.items():
                self._cards()[mac]["addresses"] = [address]
        return {"interfaces": [{"name": n, "mac": m, "addresses": a} for n, m, a in self._interfaces()]}

    def _cards(self) -> dict[str, dict[str, Any]]:
        return {nic["mac"]: nic for nic in self.guest.nics.values()}

    def _interfaces(self) -> list[tuple[str, str, list[str]]]:
        return [
            (f"eth{i}", nic["mac"], nic["addresses"]) for i, nic in enumerate(list(self.guest.nics.values()))
        ]

    def _power(self, request: Any) -> dict[str, Any]:
        request.later.append(self.guest.power_off)
        return {}
