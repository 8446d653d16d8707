"""The agent's process: both ports, a thread each, until SIGTERM.

    agent.pyz [--root DIR] [--control PORT] [--exec PORT]

PORT is the name of a virtio-serial port, or the number of an inherited descriptor (a test's socket). With
--precompile the zipapp adds compiled modules to itself and ends (`precompile`); with --install it makes itself
a service of the system it runs in, with --remove it ends that (`installation`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from . import PROTOCOL, VERSION, files, generation, process, settings
from .channel import Channel
from .errors import CallError, log, log_exception
from .items import load_items
from .jobs import Jobs
from .kernel import Kernel
from .lifecycle import Lifecycle
from .network import Network
from .port import open_port
from .power import power
from .priority import go_along
from .request import Request
from .server import Server
from .subscribers import HANDED, Subscribers
from .workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .server import Call

CONTROL_PORT = "org.liveclone.agent.0"
SCRUB_STEPS = ("stop", "read", "remove", "clean", "restore", "start")
EXEC_PORT = "org.liveclone.exec.0"
_STACK_BYTES = 512 * 1024  # of a thread; the default of 8 MiB is only address space, but is counted by limits
_AFTER_FAILURE_S = 1.0


class Agent:
    """Everything the ports share. `kernel` can be one that records (tests); `go_first` as in `workers`."""

    def __init__(self, root: str = "/", kernel: Kernel | None = None, *, go_first: bool = False) -> None:
        self.root = root
        self.kernel = kernel or Kernel()
        self.workers = Workers(go_first=go_first)
        self.jobs = Jobs()
        self.servers: list[Server] = []
        self._scrubbing = threading.Lock()
        self._wanted_back = threading.Event()  # as in `scrub`
        self._renewing = False
        self.subscribers = Subscribers(root)
        self.lifecycle = Lifecycle(
            root, self.kernel, load_items(), self.workers, self.subscribers, self.jobs.orphan_all
        )
        self.network = Network(root, self.lifecycle.settled)
        self.calls: dict[str, Call] = {
            "ping": self.ping,
            "observe": self.lifecycle.observe,
            "scan": self.scan,
            "prepare": self.lifecycle.prepare,
            "identify": self.lifecycle.identify,
            "resume": self.lifecycle.resume,
            "network": self.network.configure,
            "interfaces": self.interfaces,
            "renew": self.renew,
            **{f"scrub_{step}": self._scrubber(step) for step in SCRUB_STEPS},
            "exec_start": self.jobs.start,
            "exec_io": self.jobs.io,
            "exec_signal": self.jobs.signal,
            "exec_resize": self.jobs.resize,
            "exec_close": self.jobs.close,
            "power": power,
        }

    def ping(self, request: Request) -> dict[str, Any]:
        """Say who answers."""
        return {
            "agent": VERSION,
            "protocol": PROTOCOL,
            "boot_id": (files.find_text("/proc/sys/kernel/random/boot_id") or "").strip(),
            "generation": generation.load(self.root),
            "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
            "python": sys.version.split()[0],
            "items": [item.name for item in self.lifecycle.items],
            "pid": os.getpid(),
            "ignored_lines": sum(server.ignored for server in self.servers),
        }

    def scan(self, request: Request) -> dict[str, Any]:
        """Tell what in this guest is not safe to copy; nothing is changed."""
        from .scan import scan  # a third of the agent's code, for one call

        return scan(self.root, request, self.subscribers.pids(), self.lifecycle.find_shared(request))

    def interfaces(self, request: Request) -> dict[str, Any]:
        """Tell what addresses this guest has."""
        from .interfaces import list_interfaces  # of guests whose network is not ours alone

        return list_interfaces(self.root, request)

    def _scrubber(self, step: str) -> Call:
        def call(request: Request) -> dict[str, Any]:
            from .scrub import Scrub  # seldom needed, as `scan`

            if step == "restore":
                self._wanted_back.set()
            if self._renewing or not self._scrubbing.acquire(blocking=False):
                raise CallError("busy", "the agent scrubs, or begins anew")
            try:
                result: dict[str, Any] = getattr(Scrub(self.root, self.kernel, self._wanted_back), step)(
                    request
                )
                return result
            finally:
                self._scrubbing.release()

        return call

    def renew(self, request: Request) -> dict[str, Any]:
        """Become a new process once the reply is out: all that this one has in its memory is gone with it.

        Applications do not notice: their connections stay.
        """
        if self.jobs.count():
            raise CallError("busy", "commands of the host run; they would be lost")

        def become_new() -> None:
            try:
                self.lifecycle.go_on()
                self.kernel.renew({HANDED: self.subscribers.hand_over()})
            finally:
                self._renewing = False

        self._renewing = True
        request.later.append(become_new)
        return {}

    def warm(self) -> None:
        """Go once through what the host will ask for, so that it is loaded and in memory by then."""
        request = Request("", "warm", {"key": "00"}, 30.0, lambda reply: None)
        try:
            self.ping(request)
            self.lifecycle.observe(request)
            self.lifecycle.warm(request)
        except Exception:  # whatever it is, the real call reports it
            log_exception("warming up")

    def serve(self, channel: Channel, *, first: bool = False) -> None:
        """Answer on `channel` until its device is gone; `first` as in `Server`."""
        server = Server(channel, self.calls, self.workers, first=first)
        self.servers.append(server)
        try:
            server.serve()
        finally:
            self.servers.remove(server)

    def serve_port(self, port: str, first: bool) -> None:
        """Answer on a port for ever: when its device goes away, wait for it to come back.

        `first` as in `Server`; for a port that is not flooded.
        """
        while True:
            try:
                channel = Channel(int(port) if port.isdigit() else open_port(port))
                log(f"serving {port}")
                self.serve(channel, first=first)
                channel.close()
            except Exception:  # the edge of a thread
                log_exception(f"port {port}")
                time.sleep(_AFTER_FAILURE_S)  # whatever it is, it must not fill the journal
            if port.isdigit():
                return


def main(arguments: list[str]) -> int:
    """Run the agent; return when SIGTERM or SIGINT comes."""
    if arguments == ["--precompile"]:
        from .precompile import precompile  # once, when an image is built; it imports much

        precompile(sys.argv[0])
        return 0
    if arguments in (["--install"], ["--remove"]):
        from . import installation  # once in the life of a guest

        return installation.install(sys.argv[0]) if arguments == ["--install"] else installation.remove()
    options = {"--root": "/", "--control": CONTROL_PORT, "--exec": EXEC_PORT}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if name not in options or not rest:
            log(f"unknown option {name}, or no value")
            return 2
        options[name] = rest.pop(0)
    told_to_end = _watch_signals()
    threading.stack_size(_STACK_BYTES)
    agent = Agent(options["--root"], go_first=True)
    agent.subscribers.open(os.environ.pop(HANDED, ""))
    settings.put_back(agent.root)
    for port, first in ((options["--control"], True), (options["--exec"], False)):
        threading.Thread(target=agent.serve_port, args=(port, first), daemon=True).start()
    log(f"agent {VERSION} ready, Python {sys.version.split()[0]}")
    go_along()
    threading.Thread(target=agent.network.restore, daemon=True).start()
    agent.warm()
    os.read(told_to_end, 1)
    end_children()
    return 0


def _watch_signals() -> int:
    """Return a descriptor that becomes readable when we are told to end.

    Not a mask and sigwait(): our children would inherit the mask and be deaf to SIGTERM.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return read_fd


def end_children(grace_s: float = 1.0) -> None:
    """End every child's process group: SIGTERM, then SIGKILL; returns when all are waited for, or cannot be ended."""
    for child in process.living():
        child.signal_group(signal.SIGTERM)
    if not process.wait_for_all(grace_s):
        for child in process.living():
            child.kill()
        process.wait_for_all(grace_s)
