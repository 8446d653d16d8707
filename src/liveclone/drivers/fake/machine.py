"""One fake machine's process: `python -S -m liveclone.drivers.fake.machine CONFIG`. Standard library only.

It answers one client at a time on its control socket, a JSON object a line:

    -> {"id": 7, "do": "pause"}          <- {"id": 7, "at_ns": ...}  or  {"id": 7, "error": "..."}

    incoming ── load ──> paused ⇄ running ── (the guest ended) ──> the process ends
                           └─ save ──> saved: device state is written and the disk let go of; resume takes it back

A client that goes away in the middle of a capture ends the capture, not the machine, which stays as it is: running, or
paused until somebody resumes it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from . import ram
from .agent import Agent
from .disk import Disk, DiskBusy
from .faults import VARIABLE, Faults
from .guest import Guest
from .port import Port
from .ram import Ram

FORMAT = "liveclone-fake-1"
FORGED = "02:66:6f:72:67:65"


class Machine:
    """The hypervisor of one machine.

    Args:
        config: name, run (folder), ram, ram_bytes, shared, layers, incoming; `sockets` maps names to listening descriptors.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.name: str = config["name"]
        self.faults = Faults(os.environ.get(VARIABLE, ""), self.name)
        self._refuse("start")
        sockets = {name: socket.socket(fileno=fd) for name, fd in config["sockets"].items()}
        self.control = sockets["control"]
        self.state = "incoming"
        self._button_pressed = False
        self._image: _Image | None = None
        self._published: dict[str, list[socket.socket]] = {}
        memory = Ram(config["ram"], config["ram_bytes"], shared=config["shared"])
        root, programs = (Path(config["run"], name) for name in ("root", "programs"))
        root.mkdir()
        programs.mkdir()
        disk = Disk([(path, offset) for path, offset in config["layers"]])
        self.guest = Guest(memory, disk, root)
        self.agent = Agent(self.guest, programs, self.faults)
        self._agent_lock = threading.Lock()
        self._agent_serves = False
        self._ports = [
            Port(sockets[name], self.guest.runs, self.faults, self._wake_agent) for name in ("agent", "exec")
        ]
        if not config["incoming"]:
            disk.acquire()
            self.guest.boot()
            self.guest.start()
            self.state = "running"
        for work in (self.guest.run, *(port.relay for port in self._ports)):
            threading.Thread(target=work, daemon=True).start()
        console = sockets["console"]
        threading.Thread(target=self._serve_console, args=(console,), daemon=True).start()

    def _wake_agent(self) -> None:
        """Start the agent when it is first spoken to: loading it is half of a machine's start."""
        with self._agent_lock:
            if not self._agent_serves:
                self.agent.serve([port.guest_fd for port in self._ports])
                self._agent_serves = True

    def serve(self) -> None:
        """Answer one client after the other, for ever."""
        while True:
            client, _ = self.control.accept()
            with client, client.makefile("rwb") as stream:
                try:
                    self._say(stream, {"machine": self.name})
                    for line in stream:
                        self._say(stream, self._answer(json.loads(line)))
                        if self._button_pressed:
                            threading.Thread(target=self.guest.power_off).start()
                except ConnectionError:
                    pass
            self.do_cancel()

    @staticmethod
    def _say(stream: Any, message: dict[str, Any]) -> None:
        stream.write(json.dumps(message).encode() + b"\n")
        stream.flush()

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        id, do = question.pop("id"), question.pop("do")
        try:
            self._refuse(do)
            return {"id": id, **(getattr(self, f"do_{do}")(**question) or {})}
        except (OSError, ValueError, DiskBusy) as error:
            return {"id": id, "error": str(error)}

    def _refuse(self, step: str) -> None:
        if self.faults.has("refuse", step):
            raise ValueError(f"{step} was refused by request")

    # Run states

    def do_status(self) -> dict[str, Any]:
        state = "crashed" if self.guest.crashed else self.state
        forged = self.faults.has("forge", "nic")
        return {
            "state": state,
            "nics": list(self.guest.nics),
            "macs": [FORGED if forged else nic["mac"] for nic in self.guest.nics.values()],
            "disk": self.guest.disk.path,
        }

    def do_pause(self) -> dict[str, Any]:
        if self.state == "running":
            self.guest.stop()
            self.state = "paused"
        return {"at_ns": time.time_ns()}

    def do_resume(self) -> dict[str, Any]:
        if self.state == "incoming":
            raise ValueError("there is no device state yet")
        if self.state == "saved":
            self.guest.disk.acquire()
        self.state = "running"
        self.guest.start()
        return {"at_ns": time.time_ns()}

    def do_power_button(self) -> None:
        if self.faults.has("abrupt", "power"):
            os._exit(0)
        self._button_pressed = not self.faults.has("ignore", "power")

    # NICs

    def do_plug(self, nic: dict[str, Any], ports: list[dict[str, Any]]) -> None:
        if nic["id"] in self.guest.nics:
            raise ValueError(f"there is a device {nic['id']} already")
        published = []
        try:
            for port in ports:
                published.append(socket.create_server((port["host_ip"], port["host_port"])))
        except OSError:
            for listener in published:
                listener.close()
            raise
        for listener in published:
            threading.Thread(target=self._serve_port, args=(listener,), daemon=True).start()
        with self.guest.nics_changed:
            self._published[nic["id"]] = published
            self.guest.nics[nic["id"]] = {"mac": nic["mac"], "addresses": []}
            self.guest.nics_changed.notify_all()

    def do_unplug(self, nic: str) -> dict[str, Any]:
        if nic not in self.guest.nics:
            raise ValueError(f"there is no device {nic}")
        if self.faults.has("stuck", "nic") or not self.guest.runs.is_set():
            return {"let_go": False}
        with self.guest.nics_changed:
            del self.guest.nics[nic]
            for listener in self._published.pop(nic):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
                listener.close()
        return {"let_go": True}

    def _serve_port(self, listener: socket.socket) -> None:
        """Be the guest's service behind a published port: it says who it is, as a web server would."""
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                body = json.dumps({"hostname": self.guest.kernel.hostname(), **self.guest.look()}) + "\n"
                client.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                client.shutdown(socket.SHUT_WR)
                client.recv(65536)

    def _serve_console(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            with client:
                client.sendall(f"\r\n{self.guest.kernel.hostname()} login: ".encode())
                while typed := client.recv(1024):
                    client.sendall(typed)

    # The disk: an instant is frozen by putting an empty layer on top

    def do_freeze(self, chain: list[list[Any]]) -> None:
        with self.guest.between_instructions():
            self.guest.disk.put_layer([(path, offset) for path, offset in chain])

    def do_thaw(self) -> None:
        with self.guest.between_instructions():
            self.guest.disk.take_layer_off()

    # Device state, and RAM of another mapping

    def do_save(self, device_state: str) -> None:
        """Write the device state; RAM is a shared file and holds what it holds. The disk is let go of."""
        self._write_state(device_state)
        self.guest.disk.release()
        self.state = "saved"

    def do_load(self, device_state: str) -> None:
        if self.state != "incoming":
            raise ValueError(f"a machine that is {self.state} loads no device state")
        loaded = json.loads(Path(device_state).read_bytes())
        if loaded.get("format") != FORMAT or loaded["ram_bytes"] != self.guest.memory.size_bytes:
            raise ValueError("the device state is of another machine type or size")
        if loaded["nics"]:
            raise ValueError(
                f"the device state has devices that this machine lacks: {', '.join(loaded['nics'])}"
            )
        self.guest.disk.acquire()
        try:
            self.guest.load(loaded["registers"])
        except BaseException:
            self.guest.disk.release()
            raise
        self.state = "paused"

    def do_protect(self, device_state: str, memory: str) -> None:
        """Write the device state; from now on the guest may run, and RAM as it is now is kept for `drain`."""
        self._write_state(device_state)
        self._image = _Image(memory, self.guest.memory.size_bytes)
        self.guest.memory.protect(self._image.save)

    def do_drain(self) -> None:
        assert self._image is not None, "drain before protect"
        self.guest.memory.save_rest()
        self._finish_image()

    def do_copy(self, memory: str) -> None:
        """Copy all of RAM while the guest runs; what it writes meanwhile is copied again by `finish`."""
        self._image = _Image(memory, self.guest.memory.size_bytes)
        self.guest.memory.copy(self._image.save, ram.used_pages())

    def do_finish(self, device_state: str) -> None:
        assert self._image is not None, "finish before copy"
        self._write_state(device_state)
        self.guest.memory.copy(self._image.save, self.guest.memory.dirty() & set(ram.used_pages()))
        self._finish_image()

    def do_cancel(self) -> None:
        """Give up the capture that is under way, if any."""
        self.guest.memory.unprotect()
        if self._image is not None:
            self._image.close()
            self._image = None

    def _finish_image(self) -> None:
        image, self._image = self._image, None
        assert image is not None
        image.close()
        if image.failure is not None:
            raise image.failure

    def _write_state(self, path: str) -> None:
        if self.guest.runs.is_set():
            raise ValueError("the machine runs")
        state = {
            "format": FORMAT,
            "ram_bytes": self.guest.memory.size_bytes,
            "nics": list(self.guest.nics),
            "registers": self.guest.store(),
        }
        Path(path).write_text(json.dumps(state))

    # What a test wants to see and to do inside the guest

    def do_look(self) -> dict[str, Any]:
        return self.guest.look()

    def do_read(self, file: str) -> dict[str, Any]:
        return {"text": self.guest.read(file)}

    def do_write(self, file: str, text: str) -> None:
        if not self.guest.runs.is_set():
            raise ValueError("the machine stands still")
        self.guest.write(file, text)


class _Image:
    """The memory image that a capture writes, sparse. A failure is kept for the end: the guest must not feel it."""

    def __init__(self, path: str, size_bytes: int) -> None:
        self.failure: OSError | None = None
        self._written: set[int] = set()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, size_bytes)

    def save(self, page: int, data: bytes) -> None:
        if page not in self._written and not data.strip(b"\0"):
            return
        self._written.add(page)
        try:
            os.pwrite(self._fd, data, page * ram.PAGE)
        except OSError as error:
            self.failure = error

    def close(self) -> None:
        os.close(self._fd)


def main(arguments: list[str]) -> int:
    """Be a machine until it is switched off or killed."""
    try:
        machine = Machine(json.loads(arguments[0]))
    except (OSError, ValueError, DiskBusy) as error:
        sys.stderr.write(f"fake: {error}\n")
        return 1
    machine.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
