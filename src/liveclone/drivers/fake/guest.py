"""What runs inside a fake machine: a processor that counts, and an operating system's files. `agent` is the third part.

processor   writes the number of its round into 16 pages of RAM, one after the other, and at the beginning of each
            round onto the disk: RAM, registers and disk of one instant can be told from a mixture of two
system      files under `root`; at a capture they are part of RAM, at a flush they are on the disk
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import programs, ram
from .disk import Disk
from .kernel import FakeKernel
from .ram import Ram

STEP_S = 0.002

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZha2UgZmFrZSBmYWtlIGZha2UgZmFrZSBmYWtlIGZha2U= image\n"
_VOLATILE = ("run/", "proc/", "tmp/")


class Guest:
    """The inside of one machine. It stands still until `start`.

    Args:
        root: an empty folder for the system's files.
    """

    def __init__(self, memory: Ram, disk: Disk, root: Path) -> None:
        self.memory, self.disk, self.root = memory, disk, root
        self.runs = threading.Event()
        self.crashed = ""
        self.kernel = FakeKernel()
        self.nics: dict[str, dict[str, Any]] = {}
        self.nics_changed = threading.Condition()
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
            if path.is_file() and not (durable and _is_volatile(name)):  # not a folder, nor a socket
                with contextlib.suppress(FileNotFoundError):
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

    def power_off(self) -> None:
        """Shut down in good order: what is in memory goes to the disk, then the machine ends."""
        self.flush()
        os._exit(0)


def is_consistent(seen: dict[str, Any]) -> bool:
    """Tell whether RAM and disk are those of the instant of the registers (what `Guest.look` returns)."""
    tick, page = seen["tick"], seen["page"]
    # Before the page that comes next everything is of this round, from it on of the one before; at 0 a round is whole.
    written = page or len(seen["pages"])
    expected = [tick] * written + [tick - 1] * (len(seen["pages"]) - written)
    return bool(seen["pages"] == expected and seen["disk"] == seen["count"])


def _is_volatile(name: str) -> bool:
    return name.lstrip("/").startswith(_VOLATILE)


def _first_files() -> dict[str, list[Any]]:
    """Return what a freshly built image holds, the same in every machine."""
    texts = {
        "/etc/hostname": "image\n",
        "/etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\timage\n",
        "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    }
    if programs.find("ssh-keygen"):
        texts["/etc/ssh/ssh_host_ed25519_key"] = "the private half\n"
        texts["/etc/ssh/ssh_host_ed25519_key.pub"] = _KEY
    return {name: [0o644, base64.b64encode(text.encode()).decode()] for name, text in texts.items()}
