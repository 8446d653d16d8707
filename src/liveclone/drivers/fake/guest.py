"""What runs inside a fake machine: a processor that counts, an operating system's files, and the real guest agent.

    processor   writes the number of its round into 16 pages of RAM, one after the other, and at the beginning of each
                round onto the disk: RAM, registers and disk of one instant can be told from a mixture of two
    system      files under `root`; at a capture they are part of RAM, at a flush they are on the disk
    agent       liveclone.guest itself, on the two ports, with `FakeKernel` in place of the system calls

The agent is loaded by its name, as the program that it is in a guest; nothing else of ours does that. It finds no
program but those in `PROGRAMS`, so that no identity item can ever touch the host.

NOT HANDLED: a call that the agent is at work on goes on while the machine stands still, and is not in a capture.
Commands of `exec` run on the host, in the folder `root`, and do not survive a handover.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import ram
from .disk import Disk
from .faults import Faults
from .ram import Ram

AGENT = __name__.partition(".drivers.")[0] + ".guest"
PROGRAMS = (
    "ssh-keygen",
    "sh",
    "cat",
    "cp",
    "date",
    "echo",
    "env",
    "mkdir",
    "mv",
    "rm",
    "sleep",
    "tee",
    "touch",
    "true",
)
STEP_S = 0.002

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZha2UgZmFrZSBmYWtlIGZha2UgZmFrZSBmYWtlIGZha2U= image\n"
_VOLATILE = ("run/", "proc/", "tmp/")


class Guest:
    """The inside of one machine. It stands still until `start`.

    Args:
        root: an empty folder for the system's files.
        programs: an empty folder for links to the programs that the agent may start.
    """

    def __init__(self, memory: Ram, disk: Disk, root: Path, programs: Path, faults: Faults) -> None:
        self.memory, self.disk, self.root, self.faults = memory, disk, root, faults
        self.runs = threading.Event()
        self.crashed = ""
        self.kernel = FakeKernel()
        self.nics: dict[str, dict[str, Any]] = {}
        self.nics_changed = threading.Condition()
        self._programs = programs
        self._processor = threading.Lock()  # held during one instruction
        self._tick = self._page = self._count = 0
        self._flushed: dict[str, str] = {}

    # The processor

    def boot(self) -> None:
        """Come up from cold: files from the disk, the counter from nought."""
        files: dict[str, list[Any]] = {}
        for line in self.disk.lines():
            self._count = line.get("count", self._count)
            if "file" in line:
                files[line["file"]] = [line.get("mode", 0o644), line["data"]]
        self._write_files(files or _first_files())
        self._flushed = self._pack_files(durable=True)
        self.kernel.set_hostname((self.read("/etc/hostname") or "").strip())

    def start(self) -> None:
        """Let the processor run."""
        self.kernel.go_on()
        self.runs.set()

    def stop(self) -> None:
        """Stop the processor between two instructions."""
        self.runs.clear()
        with self._processor:
            self.kernel.stand_still()

    def run(self) -> None:
        """Be the processor; a thread's work."""
        try:
            while True:
                with self._instruction():
                    if self._page == 0:
                        self._tick += 1
                        self._count += 1
                        self.disk.append(count=self._count)
                    self.memory.write(ram.COUNTERS[self._page], self._tick.to_bytes(8, "big"))
                    self._page = (self._page + 1) % len(ram.COUNTERS)
                time.sleep(STEP_S)
        except OSError as error:  # QEMU's werror=stop: the guest cannot go on without its disk
            self.crashed = str(error)
            self.runs.clear()

    @contextlib.contextmanager
    def between_instructions(self) -> Iterator[None]:
        """Keep the processor from running in the block."""
        with self._processor:
            yield

    @contextlib.contextmanager
    def _instruction(self) -> Iterator[None]:
        while True:
            self.runs.wait()
            with self._processor:
                if self.runs.is_set():
                    yield
                    return

    # Its state

    def store(self) -> dict[str, Any]:
        """Put the system's state into RAM and return the registers; the guest stands still."""
        state = json.dumps({"files": self._pack_files(durable=False), "kernel": self.kernel.state()}).encode()
        data = len(state).to_bytes(8, "big") + state
        pages = [data[at : at + ram.PAGE] for at in range(0, len(data), ram.PAGE)]
        if len(pages) > len(ram.STATE):
            raise OSError(f"the guest's files need {len(data)} bytes of RAM")
        for number, page in zip(ram.STATE, pages, strict=False):
            self.memory.write(number, page)
        return {"tick": self._tick, "page": self._page, "count": self._count}

    def load(self, registers: dict[str, int]) -> None:
        """Take over registers, and the state that RAM holds.

        Raises:
            ValueError: RAM or disk are not of the same instant as the registers.
        """
        self._tick, self._page, self._count = (registers[name] for name in ("tick", "page", "count"))
        seen = self.look()
        if not is_consistent(seen):
            raise ValueError(f"memory and device state do not belong together: {seen}")
        size = int.from_bytes(self.memory.read(ram.STATE[0])[:8], "big")
        pages = ram.STATE[: size // ram.PAGE + 2]
        state = json.loads(b"".join(self.memory.read(page) for page in pages)[8 : 8 + size])
        self._write_files(state["files"])
        self._flushed = {name: data for name, (_, data) in state["files"].items() if not _is_volatile(name)}
        self.kernel.load(state["kernel"])

    def look(self) -> dict[str, Any]:
        """Return registers, counter pages and the last count on the disk, as they are at one instant."""
        with self._processor:
            return {
                "tick": self._tick,
                "page": self._page,
                "count": self._count,
                "pages": [int.from_bytes(self.memory.read(p)[:8], "big") for p in ram.COUNTERS],
                "disk": max((line.get("count", 0) for line in self.disk.lines()), default=0),
            }

    def read(self, name: str) -> str | None:
        """Return the text of one of the system's files, None where there is none."""
        path = self._path(name)
        return path.read_text() if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Write one of the system's files, down to the disk; the guest runs."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.flush()

    def flush(self) -> None:
        """Write what changed in the system's files to the disk."""
        with self._instruction():
            now = self._pack_files(durable=True)
            for name in sorted(self._flushed.keys() | now.keys()):
                if now.get(name) != self._flushed.get(name):
                    mode, data = now.get(name) or (0, None)
                    self.disk.append(file=name, mode=mode, data=data)
            self._flushed = now

    def _pack_files(self, *, durable: bool) -> dict[str, Any]:
        packed = {}
        for path in self.root.rglob("*"):
            name = "/" + str(path.relative_to(self.root))
            if not (durable and _is_volatile(name)):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    data = base64.b64encode(path.read_bytes()).decode()
                    packed[name] = [path.stat().st_mode & 0o777, data]
        return packed

    def _write_files(self, files: dict[str, Any]) -> None:
        for name, (mode, data) in files.items():
            if data is not None:
                path = self._path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(data))
                path.chmod(mode)
        self._path("/proc").mkdir(exist_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    # The agent

    def serve(self, port_fds: list[int]) -> None:
        """Start the agent on its ports."""
        program: Any = importlib.import_module(AGENT + ".main")
        channel: Any = importlib.import_module(AGENT + ".channel")
        process: Any = importlib.import_module(AGENT + ".process")
        process.PATH = str(self._programs)
        for name in PROGRAMS:
            found = _find_program(name)
            if found:
                (self._programs / name).symlink_to(found)
        agent = program.Agent(str(self.root), self.kernel)
        self.kernel.interfaces = self._interfaces
        # Only calls that are known here: a new one might mean the host's system instead of this one.
        calls = {
            name: call for name, call in agent.calls.items() if name.startswith("exec_") or name in _SAFE
        }
        calls |= {"network": self._network, "power": self._power}
        agent.calls = {name: self._asked(name, call) for name, call in calls.items()}
        for fd in port_fds:
            threading.Thread(target=agent.serve, args=(channel.Channel(fd),), daemon=True).start()

    def _asked(self, name: str, call: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def answer(request: Any) -> dict[str, Any]:
            if self.faults.has("die", name):
                os._exit(1)
            if self.faults.has("hang", name):
                threading.Event().wait()
            if name == "exec_start":
                request.args["env"] = {
                    "PATH": os.defpath,
                    "HOME": str(self.root),
                    **(request.args.get("env") or {}),
                }
                request.args["cwd"] = request.args.get("cwd") or str(self.root)
            result = call(request)
            if name in ("identify", "resume"):
                request.later.append(self.flush)
            if name == "identify":
                result = dict(result, items=self.faults.distort(result["items"]))
            return result

        return answer

    def _network(self, request: Any) -> dict[str, Any]:
        """Give addresses to the cards that were plugged; wait for those that are still to come."""
        wanted = {nic["mac"]: nic["address"] for nic in request.args.get("nics") or []}
        wait_s = min(float(request.args.get("wait_s") or 10.0), request.remaining_s() * 0.9)
        with self.nics_changed:
            if not self.nics_changed.wait_for(lambda: wanted.keys() <= self._cards().keys(), wait_s):
                missing = ", ".join(sorted(wanted.keys() - self._cards().keys()))
                errors: Any = importlib.import_module(AGENT + ".errors")
                raise errors.CallError("no-link", f"no card with MAC {missing} came within {wait_s:g} s")
            for mac, address in wanted.items():
                self._cards()[mac]["addresses"] = [address]
        return {"interfaces": [{"name": n, "mac": m, "addresses": a} for n, m, a in self._interfaces()]}

    def _cards(self) -> dict[str, dict[str, Any]]:
        return {nic["mac"]: nic for nic in self.nics.values()}

    def _interfaces(self) -> list[tuple[str, str, list[str]]]:
        return [(f"eth{i}", nic["mac"], nic["addresses"]) for i, nic in enumerate(list(self.nics.values()))]

    def _power(self, request: Any) -> dict[str, Any]:
        request.later.append(self.power_off)
        return {}

    def power_off(self) -> None:
        """Shut down in good order: what is in memory goes to the disk, then the machine ends."""
        self.flush()
        os._exit(0)


_SAFE = ("ping", "observe", "prepare", "identify", "resume")


class FakeKernel:
    """The system calls that change a whole machine, and the state behind them; stands in for guest/kernel.py.

    It has no VMGENID: a copy that is not given entropy draws the same numbers as its original.
    """

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

    def draw(self, count: int) -> bytes:
        with self._lock:
            drawn = hashlib.shake_256(self._pool + b"draw").digest(count)
            self._pool = hashlib.sha256(self._pool + b"next").digest()
        return drawn

    def add_entropy(self, seed: bytes, uncredited: bytes) -> None:
        with self._lock:
            self._pool = hashlib.sha256(self._pool + seed + uncredited).digest()


def is_consistent(seen: dict[str, Any]) -> bool:
    """Tell whether RAM and disk are those of the instant of the registers (what `Guest.look` returns)."""
    tick, page = seen["tick"], seen["page"]
    # Before the page that comes next everything is of this round, from it on of the one before; at 0 a round is whole.
    written = page or len(seen["pages"])
    expected = [tick] * written + [tick - 1] * (len(seen["pages"]) - written)
    return bool(seen["pages"] == expected and seen["disk"] == seen["count"])


def _is_volatile(name: str) -> bool:
    return name.lstrip("/").startswith(_VOLATILE)


def _find_program(name: str) -> str | None:
    # Not shutil.which: importing shutil would be a fifth of a machine's start.
    paths = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _first_files() -> dict[str, list[Any]]:
    """Return what a freshly built image holds, the same in every machine."""
    texts = {
        "/etc/hostname": "image\n",
        "/etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\timage\n",
        "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    }
    if _find_program("ssh-keygen"):
        texts["/etc/ssh/ssh_host_ed25519_key"] = "the private half\n"
        texts["/etc/ssh/ssh_host_ed25519_key.pub"] = _KEY
    return {name: [0o644, base64.b64encode(text.encode()).decode()] for name, text in texts.items()}
