"""Real machines for tests/vm and tests/fault: a home, short ways to use the product in it, and a look at what it leaves.

    Lab ── run snapshot clone shell http ... ──> the engine, in this process
        ── operation(...) ─────────────────────> the engine, in a process that a test may stop at a point or kill
        ── find_faults() ──────────────────────> all that is not as it should be just now: processes, writers, taps, files

Three guests come from one image: `std` starts Debian with systemd, `light` the same disk with /opt/light-init instead, which
is there in a third of the time and has a root shell on its console (`Lab.console`), also while its agent is stopped. `plain`
is `std` without anything of ours, as a machine that nobody prepared; where a domain has a port for it the stock QEMU guest
agent runs in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from liveclone.engine import clone, disposal, execute, remove, repair, run, seal, snapshot
from liveclone.engine import settings as engine_settings
from liveclone.engine.context import open_context
from liveclone.errors import LivecloneError
from liveclone.formats import cpio
from liveclone.host import files, links, netns, process, tap, unix_socket
from liveclone.images import initramfs
from liveclone.images.build import build_image, recipe
from liveclone.images.spec import ImageSpec
from liveclone.model import base
from liveclone.model.image import Image
from liveclone.model.machine import Machine, ProcessRef
from liveclone.model.network import NetworkKind, Port
from liveclone.model.snapshot import CaptureMethod, Snapshot, SnapshotState
from liveclone.units import MIB
from tests.conftest import note_namespace

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
DEMO, GUEST = ROOT / "demo", ROOT / "tests" / "vm" / "guest"
UNIT = "/etc/systemd/system/warm-app.service"
HTTP, TICKS = 8080, 8081
STD_RAM, LIGHT_RAM = 256 * MIB, 192 * MIB

# Of tests/vm/test_applications.py, and of test_rare_items.py: programs that keep an identity, and those that show it;
# of test_agent_install.py: what puts our agent into a guest.
PACKAGES = (
    *("nginx", "dhcpcd-base", "dnsmasq-base", "isc-dhcp-client", "libpam-systemd"),
    *("network-manager", "nftables", "qemu-guest-agent"),
)

COLLECTIONS = ("machines", "snapshots", "leases", "network", "host-key")  # that have a lock

# Generous: the machine that runs this may be busy with anything.
PATIENCE_S = 120.0
_OLD_IMAGE_S = 24 * 3600.0
_PREFIX = "test-warm-"


def build_images(cache_folder: Path) -> dict[str, Image]:
    """Return the images `std`, `light` and `plain`, from the cache if they are there; one that is a day out of date goes."""
    spec = ImageSpec(
        name="test",
        packages=PACKAGES,
        files=(
            (DEMO / "warm_app.py", "/opt/warm_app.py"),
            (DEMO / "warm-app.service", UNIT),
            (GUEST / "quick.conf", f"{UNIT}.d/quick.conf"),
            (GUEST / "light-init", "/opt/light-init"),
            (GUEST / "plain-init", "/opt/plain-init"),
        ),
        script=GUEST / "setup",
    )
    folder = cache_folder / "images"
    # Named by its recipe, so that two checkouts, or a run and the next one, never fight over a name.
    spec = replace(spec, name=f"{_PREFIX}{recipe(spec)[:12]}")
    std = asyncio.run(build_image(spec, folder))
    _forget_old(folder, std.name)
    other = {
        name: std.replace(
            name=name, boot=std.boot.replace(initrd=str(_add_init(Path(std.boot.initrd), name, cache_folder)))
        )
        for name in ("light", "plain")
    }
    return {"std": std.replace(name="std"), **other}


def _add_init(initrd: Path, name: str, cache_folder: Path) -> Path:
    """Return an initrd that starts /opt/NAME-init: of two files with one name in an initrd, the later one counts."""
    init = initramfs.INIT.replace("/sbin/init", f"/opt/{name}-init")
    assert init != initramfs.INIT
    data = initrd.read_bytes() + cpio.render_archive([cpio.file("init", init.encode(), 0o755)])
    path = cache_folder / f"{name}-initrd" / hashlib.sha256(data).hexdigest()[:12]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        files.write_atomic(path, data)
    return path


def _forget_old(folder: Path, present: str) -> None:
    from liveclone.images.library import ImageLibrary

    library = ImageLibrary(folder)
    for image in library.list():
        age_s = time.time() - image.created_at.timestamp()
        if image.name.startswith(_PREFIX) and image.name != present and age_s > _OLD_IMAGE_S:
            asyncio.run(library.remove(image.name))


class Lab:
    """One home of its own, with machines in it. Close it: everything goes."""

    def __init__(self, home: Path, hot: Path, images: dict[str, Image]) -> None:
        self.settings = replace(engine_settings.read({}), home=home, hot=hot)
        self.ctx = open_context(self.settings)
        note_namespace(self.ctx.layout.namespace)
        for name, image in images.items():
            folder = self.ctx.layout.images / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_bytes(base.encode(image))
        self._runner = asyncio.Runner()

    # ------------------------------------------------------------------ the product

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the engine to its end."""
        return self._runner.run(work)

    def boot(self, name: str, image: str = "std", **options: Any) -> Machine:
        """Start a machine from cold and wait until its application serves."""
        options.setdefault("ram_bytes", STD_RAM if image == "std" else LIGHT_RAM)
        machine = self.wait(run.run(self.ctx, run.Request(image=image, name=name, **options)))
        self.http(machine)
        return machine

    def start(self, machine: Machine) -> Machine:
        """Start a stopped machine and wait until its application serves."""
        machine = self.wait(run.start(self.ctx, machine.id))
        self.http(machine)
        return machine

    def stop(self, machine: Machine, *, force: bool = False) -> Machine:
        return self.wait(run.stop(self.ctx, machine.id, force=force, deadline_s=PATIENCE_S))

    def snapshot(
        self,
        machine: Machine,
        name: str = "",
        method: CaptureMethod | None = None,
        **options: Any,
    ) -> Snapshot:
        request = snapshot.Request(machine=machine.id, name=name, method=method, **options)
        return self.wait(snapshot.take(self.ctx, request))

    def results(self, taken: Snapshot, count: int = 1, **options: Any) -> list[clone.Result]:
        """Ask for clones; each result holds a machine or an error."""
        return self.wait(
            clone.start(self.ctx, clone.Request(snapshot=taken.id, count=count, overcommit=True, **options))
        )

    def clones(self, taken: Snapshot, count: int = 1, **options: Any) -> list[Machine]:
        """Start clones, all of which must be ready."""
        machines = []
        results = self.results(taken, count, **options)
        for result in results:
            if result.error is not None:
                self.remove(*(other.machine for other in results if other.machine is not None))
                raise AssertionError(result.error.fields()) from result.error
            assert result.machine is not None
            machines.append(result.machine)
        return machines

    def clone(self, taken: Snapshot, **options: Any) -> Machine:
        return self.clones(taken, 1, **options)[0]

    def reload(self, machine: Machine) -> Machine:
        """Return the machine's manifest as it is now."""
        return self.ctx.machines.load(machine.id)

    def remove(self, *machines: Machine) -> None:
        for machine in machines:
            self.wait(remove.remove_machine(self.ctx, machine.id, force=True))

    def remove_snapshot(self, taken: Snapshot) -> None:
        self.wait(remove.remove_snapshot(self.ctx, taken.id))

    def repair(self) -> list[str]:
        return self.wait(repair.settle_all(self.ctx))

    # ------------------------------------------------------------------ the guest

    def shell(self, machine: Machine, script: str) -> str:
        """Run a script in the guest through its agent and return what it printed; it must succeed."""
        code, out, err = self.wait(
            execute.ask(self.ctx, self.reload(machine), ["sh", "-c", f"set -e\n{script}"])
        )
        assert code == 0, f"{script!r} ended with {code} in {machine.name}: {out}{err}"
        return out.strip()

    def http(self, machine: Machine, path: str = "/", port: int = HTTP) -> dict[str, Any]:
        """Ask the guest's application, as soon as it serves."""
        return self.wait(http(self, machine, path, port=port))

    def qmp(self, machine: Machine, command: str, **arguments: Any) -> Any:
        """Ask the machine's QEMU."""

        async def ask() -> Any:
            handle = await self.ctx.driver.open(self.reload(machine), self.ctx.layout.machine(machine.id))
            try:
                return await handle.session.call(command, **arguments)  # type: ignore[attr-defined]
            finally:
                await handle.close()

        return self.wait(ask())

    def nics(self, machine: Machine) -> list[str]:
        """Return the ids of the NICs that QEMU has just now."""
        devices = [d for bus in self.qmp(machine, "query-pci") for d in bus["devices"]]
        behind = [d for device in devices for d in device.get("pci_bridge", {}).get("devices", [])]
        return [device["qdev_id"] for device in behind]

    def console(self, machine: Machine, line: str) -> str:
        """Let the root shell on a light guest's console run a line, and return what it printed."""
        mark = os.urandom(4).hex()
        with unix_socket.connect(self.ctx.layout.machine(machine.id) / "run" / "console") as sock:
            sock.settimeout(PATIENCE_S)
            # The mark is put together by the shell, so that the terminal's echo of the line is not taken for it.
            sock.sendall(f"\n{line}; echo end''-{mark}\n".encode())
            seen = ""
            while f"end-{mark}" not in seen:
                data = sock.recv(4096)
                assert data, f"the console of {machine.name} ended: {seen}"
                seen += data.decode(errors="replace")
        return seen

    # ------------------------------------------------------------------ the host

    def taps(self) -> tuple[str, ...]:
        return links.list_taps(self.ctx.network_spec())

    def qemus(self) -> dict[int, str]:
        """Return the QEMU processes of this home, with their command lines."""
        found = process.find(str(self.ctx.layout.home))
        return {pid: line for pid, line in found if line.startswith("qemu-system")}

    def snapshots_sealed(self) -> None:
        """Wait until nobody is at work on sealing a snapshot."""
        _wait_for_names()
        for pid, line in process.find(str(self.ctx.layout.home)):
            if seal.__name__ in line:
                with suppress(LivecloneError):
                    assert process.wait_gone(process.ref(pid), PATIENCE_S), f"{line} does not end"

    def wait_sealed(self, taken: Snapshot) -> Snapshot:
        self.snapshots_sealed()
        sealed = self.ctx.snapshots.load(taken.id)
        log = self.ctx.layout.snapshot(taken.id) / seal.LOG
        assert sealed.state is SnapshotState.SEALED, log.read_text()
        return sealed

    def close(self) -> None:
        """Remove every machine and snapshot, and fail for what is left."""
        try:
            self.repair()
            for machine in self.ctx.machines.list():
                self.remove(machine)
            for taken in self.ctx.snapshots.list():
                self.remove_snapshot(taken)
            self.snapshots_sealed()
            disposal.sweep(self.ctx)
            faults = self.find_faults()
            layout = self.ctx.layout
            faults += [
                str(path) for folder in (layout.machines, layout.snapshots) for path in folder.iterdir()
            ]
            faults += [str(path) for path in layout.locks.iterdir() if path.name not in COLLECTIONS]
            if netns.exists(layout.namespace):
                faults.append(f"network namespace {layout.namespace}")
            assert not faults, "left behind:\n  " + "\n  ".join(faults)
        finally:
            self._runner.close()

    def find_double_writers(self) -> list[str]:
        """Return the disk layers that two processes have open for writing, whatever else is going on."""
        writers: dict[tuple[int, int], set[str]] = {}
        for pid in self.qemus():
            for key, name in open_for_writing(pid):
                writers.setdefault(key, set()).add(f"{pid} as {name}")
        return [f"written by {sorted(found)}" for found in writers.values() if len(found) > 1]

    def find_faults(self) -> list[str]:
        """Return all that must not be, as it is now, while no operation is under way."""
        machines, snapshots = self.ctx.machines.list(), self.ctx.snapshots.list()
        return [
            *self.find_double_writers(),
            *self._find_process_faults(machines),
            *self._find_writer_faults(machines),
            *self._find_network_faults(machines),
            *self._find_machine_faults(machines),
            *self._find_snapshot_faults(machines, snapshots),
            *self._find_hot_faults(machines, snapshots),
        ]

    def _find_process_faults(self, machines: list[Machine]) -> Iterable[str]:
        refs = [ref for machine in machines for ref in (machine.process, machine.port_process) if ref]
        known = {ref.pid for ref in refs if process.is_alive(ref)}
        for pid, line in process.find(str(self.ctx.layout.home)):
            if pid not in known and seal.__name__ not in line and is_alive(pid):
                yield f"process {pid} belongs to no machine: {line[:200]}"
        for machine in machines:
            if process.is_alive(machine.process):
                state = self.qmp(machine, "query-status")["status"]
                if state != "running":
                    yield f"{machine.name} is {state}"
            if self.ctx.journal(machine.id).read() is not None:
                yield f"an operation on {machine.name} is not finished"

    def _find_writer_faults(self, machines: list[Machine]) -> Iterable[str]:
        writers: dict[tuple[int, int], set[int]] = {}
        frozen = {key_of(path) for path in self.ctx.layout.snapshots.glob("*/disk.qcow2")}
        for pid in self.qemus():
            for key, name in open_for_writing(pid):
                writers.setdefault(key, set()).add(pid)
                if key in frozen:
                    yield f"{name} is a snapshot's, and {pid} has it open for writing"
        for machine in machines:
            own = writers.get(key_of(Path(machine.disk)), set())
            if process.is_alive(machine.process) and machine.process and machine.process.pid not in own:
                yield f"{machine.name} does not write {machine.disk}"

    def _find_network_faults(self, machines: list[Machine]) -> Iterable[str]:
        wanted = {
            tap.tap_name(m.id, 0): m.name
            for m in machines
            if m.network is NetworkKind.BRIDGE and process.is_alive(m.process) and not m.quarantined
        }
        taps = self.taps()
        for name, owner in wanted.items():
            mine = [found for found in taps if found.startswith(name)]
            if len(mine) != 1:
                yield f"{owner} has the taps {mine}"
        for found in taps:
            if found[:14] not in wanted:
                yield f"tap {found} is nobody's"
        for machine in machines:
            forwards = machine.ports and machine.network is NetworkKind.BRIDGE
            if forwards and process.is_alive(machine.process) and not process.is_alive(machine.port_process):
                yield f"the ports of {machine.name} are not published"
        leases = self.ctx.layout.network / "leases.json"
        owners = set(json.loads(leases.read_bytes())["addresses"].values()) if leases.exists() else set()
        yield from (f"an address is leased to {o}, who is gone" for o in owners - {m.id for m in machines})

    def _find_machine_faults(self, machines: list[Machine]) -> Iterable[str]:
        known = {machine.id: machine for machine in machines}
        for folder in self.ctx.layout.machines.iterdir():
            machine = known.get(folder.name)
            if machine is None:
                yield f"{folder} has no manifest: {sorted(p.name for p in folder.iterdir())}"
                continue
            allowed = {"manifest.json", "qemu.log", "console.log", "ports.log", Path(machine.disk).name}
            if machine.process is not None:  # it runs, or has died and nobody has looked at it since
                allowed |= {"run", (folder / "run").readlink().name}
            yield from (f"{p} is left over" for p in folder.iterdir() if p.name not in allowed)

    def _find_snapshot_faults(self, machines: list[Machine], snapshots: list[Snapshot]) -> Iterable[str]:
        needed = {layer for machine in machines for layer in machine.layers}
        needed |= {layer for taken in snapshots for layer in taken.layers}
        known = {taken.id for taken in snapshots}
        allowed = {
            "manifest.json",
            "state",
            "memory",
            "disk.qcow2",
            "key",
            "evidence",
            "stamps.json",
            seal.LOG,
            "pool",
        }
        for folder in self.ctx.layout.snapshots.iterdir():
            names = {path.name for path in folder.iterdir()}
            if folder.name in known:
                # A copy being made just now has its temporary name.
                names -= {"memory.part"} if self._is_sealing(folder.name) else set()
                yield from (f"{folder / name} is left over" for name in names - allowed)
            elif folder.name not in needed:
                yield f"{folder} is needed by nobody: {sorted(names)}"
            elif names != {"disk.qcow2"}:
                yield f"{folder} should hold a layer alone: {sorted(names)}"

    def _find_hot_faults(self, machines: list[Machine], snapshots: list[Snapshot]) -> Iterable[str]:
        used = {machine.memory.path for machine in machines if machine.memory is not None}
        used |= {taken.hot.path for taken in snapshots if taken.hot is not None}
        for path in self.ctx.layout.hot.iterdir():
            if str(path) not in used:
                yield f"{path} is nobody's memory"

    def _is_sealing(self, snapshot_id: str) -> bool:
        found = process.find(str(self.ctx.layout.home))
        return any(seal.__name__ in line and snapshot_id in line for _, line in found)


class Operation:
    """An operation in a process of its own; at each point of `stops` it waits until `go_on`, or until it is killed.

    Use it as a context manager: on the way out the process is gone, and so are its FIFOs.
    """

    def __init__(
        self,
        lab: Lab,
        do: str,
        *,
        stops: Iterable[str] = (),
        kill_at: str = "",
        deadlines: dict[str, float] | None = None,
        **arguments: Any,
    ) -> None:
        # In the folder of the run, whatever home the lab has: that may be full.
        run = Path(os.environ["LIVECLONE_HOME"]).parent
        self._folder = Path(tempfile.mkdtemp(prefix="operation-", dir=run))
        self._fifos = {point: self._make_fifo(point) for point in stops}
        trace = self._make_fifo("trace")
        # Open for writing too, so that there is no end of file between two points.
        self._trace = os.open(trace, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._unread = b""
        self.passed: list[str] = []
        faults = [f"{point}=wait:{fifo}" for point, fifo in self._fifos.items()]
        faults += [f"{kill_at}=kill"] if kill_at else []
        wanted = {"do": do, "with": arguments, "deadlines": deadlines or {}}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.operation", json.dumps(wanted)],
            cwd=ROOT,
            env=os.environ
            | {
                "LIVECLONE_HOME": str(lab.settings.home),
                "LIVECLONE_HOT": str(lab.settings.hot),
                "LIVECLONE_DRIVER": lab.settings.driver,
                "LIVECLONE_LIBVIRT_URI": lab.settings.libvirt_uri,
                "LIVECLONE_FAULT": ",".join(faults),
                "LIVECLONE_TRACE": str(trace),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._ended = os.pidfd_open(self._process.pid)

    def __enter__(self) -> Operation:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._ended)
        shutil.rmtree(self._folder)  # first: nobody may come to open a FIFO that has no reader
        os.close(self._trace)

    @property
    def pid(self) -> int:
        return self._process.pid

    def reach(self, point: str) -> None:
        """Wait until the operation has come to `point`."""
        while point not in self.passed:
            readable, _, _ = select.select([self._trace, self._ended], [], [], PATIENCE_S)
            assert readable, f"{point} was not reached in time, only {self.passed}"
            self._read_trace()
            if self._ended in readable and point not in self.passed:
                raise AssertionError(f"it ended before {point}: {self.passed} {self._process.communicate()}")

    def wait_for_lock(self, name: str) -> None:
        """Wait until the operation has the lock file open: it waits for whoever holds it."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(path.endswith(f"/locks/{name}") for path in self._open_files()):
            assert time.monotonic() < deadline, f"it does not want {name}"
            assert self._process.poll() is None, (
                f"it ended before it wanted {name}: {self._process.communicate()}"
            )
            time.sleep(0.01)  # the kernel tells nobody who waits for a flock(2)

    def _open_files(self) -> list[str]:
        with suppress(OSError):
            return [str(fd.readlink()) for fd in Path(f"/proc/{self.pid}/fd").iterdir()]
        return []

    def read(self) -> list[str]:
        """Return the points that it, and what it started, have passed until now."""
        self._read_trace()
        return self.passed

    def go_on(self, point: str) -> None:
        """Let the operation go on from `point`, which it has reached."""
        self._fifos[point].open("wb").close()

    def kill(self) -> None:
        """End it as the kernel's out-of-memory killer would."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def result(self) -> dict[str, Any]:
        """Wait for the end; return what it printed, or {"killed": True}, or {"interrupted": True}."""
        out, err = self._process.communicate(timeout=2 * PATIENCE_S)
        self._read_trace()
        if self._process.returncode == -signal.SIGKILL:
            return {"killed": True}
        if self._process.returncode == -signal.SIGINT:
            return {"interrupted": True}
        assert self._process.returncode in (0, 1) and out, err.decode()
        found: dict[str, Any] = json.loads(out)
        return found

    def _make_fifo(self, name: str) -> Path:
        path = self._folder / name
        os.mkfifo(path)
        return path

    def _read_trace(self) -> None:
        with suppress(BlockingIOError):
            self._unread += os.read(self._trace, 65536)
        *lines, self._unread = self._unread.split(b"\n")
        self.passed += [line.decode() for line in lines]


async def connect(lab: Lab, machine: Machine, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a guest's port from inside the bridge network, or else through the published port."""
    machine = lab.reload(machine)
    if machine.network is NetworkKind.BRIDGE:
        return await netns.open_connection(lab.ctx.layout.namespace, machine.nics[0].ip, port)
    return await connect_published(machine, port)


async def connect_published(machine: Machine, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a guest's port as anybody on the host would."""
    published = {p.guest_port: (p.host_ip, p.host_port) for p in machine.ports}
    return await asyncio.open_connection(*published[port])


async def http(
    lab: Lab, machine: Machine, path: str = "/", *, published: bool = False, port: int = HTTP
) -> dict[str, Any]:
    """Ask the guest's application; it opens its port when it is warm, so an answer is tried for until then."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            async with asyncio.timeout(10.0):
                opening = connect_published(machine, port) if published else connect(lab, machine, port)
                reader, writer = await opening
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n".encode())
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                finally:
                    writer.close()
            if head.startswith(b"HTTP/1.1 200"):
                found: dict[str, Any] = json.loads(body)
                return found
        except (OSError, TimeoutError, json.JSONDecodeError):  # half an answer: its guest has just gone down
            if time.monotonic() > end:
                raise
        # Nothing tells from outside that a guest's program has begun to listen.
        await asyncio.sleep(0.05)


class Ticks:
    """A client of the guest's ticker: one TCP connection, each line numbered by the guest's memory alone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.count = 0
        self.token = ""

    @classmethod
    async def open(cls, lab: Lab, machine: Machine) -> Ticks:
        return cls(*await connect(lab, machine, TICKS))

    async def more(self, lines: int) -> None:
        """Read that many lines; each must be the successor of the last and carry the same token."""
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(lines):
                line = await self._reader.readline()
                assert line, f"the connection ended after {self.count} lines"
                number, token = line.decode().split()
                assert int(number) == self.count + 1, "a line was lost, or came twice"
                assert self.token in ("", token), "another program answers"
                self.count, self.token = int(number), token

    async def drain(self) -> None:
        """Read what has come meanwhile, so that whatever follows was sent after now."""
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(self.more(1), 0.003)

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def _wait_for_names() -> None:
    """Wait until the processes that we have just started have their command lines: exec tells us a moment before."""
    for task in Path("/proc/self/task").iterdir():
        children: list[str] = []
        with suppress(OSError):  # a thread that has just ended
            children = (task / "children").read_text().split()
        for pid in children:
            with suppress(OSError):
                while not Path(f"/proc/{pid}/cmdline").read_bytes() and is_alive(int(pid)):
                    os.sched_yield()


def find_points(*prefixes: str) -> list[str]:
    """Return the trace points that the sources name, with these first words (none: all): a new one is covered by itself."""
    found = []
    source = ROOT / "src" / "liveclone"
    for path in sorted({*source.rglob("*.py")} - {*(source / "drivers" / "fake").rglob("*.py")}):
        found += re.findall(r'trace\.at\("([a-z.-]+)"\)', path.read_text())
    return [point for point in dict.fromkeys(found) if not prefixes or point.partition(".")[0] in prefixes]


def open_for_writing(pid: int) -> list[tuple[tuple[int, int], str]]:
    """Return device and inode, and name, of the disk layers that a process has open for writing."""
    found = []
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                name = str(fd.readlink())
                flags = int(
                    Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split("flags:")[1].split()[0], 8
                )
                if ".qcow2" in name and flags & os.O_ACCMODE != os.O_RDONLY:
                    found.append((key_of(fd), name))
    return found


def key_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def is_alive(pid: int) -> bool:
    with suppress(LivecloneError):
        return process.is_alive(process.ref(pid))
    return False


def check_clear(error: LivecloneError | dict[str, str], *, source_state: str = "") -> None:
    """Fail unless the error (or its fields) says all that a person needs next."""
    fields = error if isinstance(error, dict) else error.fields()
    missing = {"error", "message", "tried", "on", "seen", "source_state", "next_step"} - set(fields)
    assert not missing, f"{sorted(missing)} is not said: {fields}"
    assert source_state in fields["source_state"], fields


def kill(process_ref: ProcessRef | None) -> None:
    """End a process as the kernel's out-of-memory killer would, and wait until it is gone."""
    assert process_ref is not None
    process.send(process_ref, signal.SIGKILL)
    assert process.wait_gone(process_ref, 10.0)


PORTS: Sequence[Port] = (Port(host_port=0, guest_port=HTTP), Port(host_port=0, guest_port=TICKS))
