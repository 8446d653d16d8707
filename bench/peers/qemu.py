"""A QEMU without liveclone: the guest that liveclone runs, its memory QEMU's own, its card there from the start.

Each is in the lab's network namespace. Its card is on QEMU's user network, where every guest may have the same address, and
its application is a port of the namespace; or, with a lease, on the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from liveclone.drivers.qemu import argv, disk
from liveclone.drivers.qemu.handle import QemuHandle
from liveclone.drivers.qemu.session import Session, Watch, event_ns, open_session
from liveclone.engine import parts
from liveclone.host import links, netns, process, unix_socket
from liveclone.ids import new_id
from liveclone.model.machine import Hardware, ProcessRef
from liveclone.units import MIB

from ..lab import Lab
from ..private import private_ram_bytes
from . import app, guest
from .base import HTTP, Copy, Expected

SOCKETS = ("qmp", "agent", "exec")
LOG = "qemu.log"
# Until it answers on QMP; with -loadvm it has loaded all the memory by then.
START_DEADLINE_S = 300.0
EVENT_DEADLINE_S = 10.0
USER_MAC = "52:54:00:12:34:56"
_ports = itertools.count(20000)


@dataclass
class Qemu:
    """One that has answered on QMP. `end` it."""

    copy: Copy
    folder: Path
    process: ProcessRef
    session: Session
    ram_mib: int
    mac: str
    cidr: str  # its address on the bridge; empty on the user network

    def touched_mib(self) -> float:
        """Return how much of its RAM exists."""
        return private_ram_bytes(self.process.pid, self.ram_mib * MIB) / MIB

    async def go_on(self) -> None:
        """Let the guest run, after a migration."""
        hardware = Hardware(ram_bytes=self.ram_mib * MIB)
        await QemuHandle(self.copy.name, self.folder, hardware, self.process, self.session).resume()

    async def end(self) -> None:
        await self.session.close()
        await process.end(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Herd:
    """QEMUs of one image and size; what was started, or only begun, ends with `end`."""

    lab: Lab
    ram_mib: int
    running: list[Qemu] = field(default_factory=list)
    _leases: list[str] = field(default_factory=list)

    async def launch(
        self, drive: Path, more: Sequence[str] = (), *, append: str = "", bridged: bool = False
    ) -> Qemu:
        """Start one that writes `drive`, a qcow2 file.

        Args:
            more: further arguments.
            append: further words of the kernel's command line; {address} is its address on the bridge.
            bridged: give it a lease, and a card on the bridge.

        Raises:
            Interrupted, NotFound: it did not start, and `seen` has its last words; nothing of it is left.
        """
        ctx, one = self.lab.ctx, new_id()
        folder = ctx.layout.home / "qemu" / one
        async with contextlib.AsyncExitStack() as undo:
            folder.mkdir(parents=True)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            with contextlib.ExitStack() as ours:
                sockets = {name: ours.enter_context(unix_socket.listen(folder / name)) for name in SOCKETS}
                fds = {name: sock.fileno() for name, sock in sockets.items()}
                if bridged:
                    self._leases.append(one)
                    mac, cidr = ctx.leases.take(one)
                    fds["tap"] = links.open_tap(ctx.network_spec(), one, 0)
                    ours.callback(os.close, fds["tap"])
                    copy = Copy(one, ctx.layout.namespace, cidr.partition("/")[0], ())
                    netdev = f"tap,id=net0,fd={fds['tap']},vhost=off"
                else:
                    mac, cidr = USER_MAC, ""
                    copy = Copy(one, ctx.layout.namespace, "127.0.0.1", (), next(_ports))
                    netdev = (
                        f"user,id=net0,ipv6=off,hostfwd=tcp:{copy.address}:{copy.port}-{guest.ADDRESS}:{HTTP}"
                    )
                line = await self._render(drive, folder, fds, append.format(address=cidr))
                line += ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="]
                started = netns.run_inside(
                    ctx.layout.namespace,
                    lambda: process.start(
                        [*line, *more], cwd=folder, log=folder / LOG, pass_fds=tuple(fds.values())
                    ),
                )
                undo.push_async_callback(process.end, started)
            session = await open_session(one, folder / "qmp", folder / LOG, START_DEADLINE_S)
            undo.pop_all()
        copy = Copy(copy.name, copy.namespace, copy.address, (started.pid,), copy.port)
        self.running.append(Qemu(copy, folder, started, session, self.ram_mib, mac, cidr))
        return self.running[-1]

    async def _render(self, drive: Path, folder: Path, fds: dict[str, int], append: str) -> list[str]:
        ctx = self.lab.ctx
        boot = ctx.images.load(app.IMAGE.name).boot
        accelerated = (await ctx.driver.abilities()).acceleration.value == "kvm"
        line = [
            *(argv.BINARY, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,usb=off,vmport=off"),
            *("-accel", "kvm" if accelerated else "tcg,thread=multi"),
            *("-cpu", "host,migratable=on" if accelerated else "max"),
            *("-m", f"{self.ram_mib}M", "-smp", "1", "-rtc", "base=utc,clock=host"),
            *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
            *("-kernel", boot.kernel, "-initrd", boot.initrd, "-append", f"{boot.cmdline} {append}".strip()),
            *("-serial", f"file:{folder / 'console.log'}"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-blockdev", json.dumps(argv.disk_node(disk.read_chain(drive)))),
        ]
        for name in SOCKETS:
            line += ["-chardev", f"socket,id={name},fd={fds[name]},server=on,wait=off"]
        for device in argv.DEVICES:
            line += ["-device", device]
        return line

    async def end(self) -> None:
        """End all."""
        while self.running:
            await self.running.pop().end()
        while self._leases:
            self.lab.ctx.leases.free(self._leases.pop())


def make_overlay(lab: Lab, path: Path, backing: Path | None = None) -> Path:
    """Make an empty layer on `backing`, a qcow2 file; on the image's disk without one."""
    image = lab.ctx.images.load(app.IMAGE.name)
    parts.make_overlay(path, backing or Path(image.disk), image.disk_bytes)
    return path


@contextlib.asynccontextmanager
async def open_warm(lab: Lab, ram_mib: int, folder: Path) -> AsyncIterator[tuple[Qemu, Expected]]:
    """Boot one until its application has answered, and fill its memory; its disk is in `folder`."""
    links.ensure_network(lab.ctx.network_spec())
    herd = Herd(lab, ram_mib)
    try:
        source = await herd.launch(make_overlay(lab, folder / "source.qcow2"))
        ports = source.folder / "agent", source.folder / "exec"
        expected = await guest.make_ready(*ports, source.copy, USER_MAC)
        yield source, expected
    finally:
        await asyncio.shield(herd.end())


@contextlib.contextmanager
def open_folders(lab: Lab, name: str) -> Iterator[tuple[Path, Path]]:
    """Make two folders, on disk and on tmpfs, and remove them."""
    folders = lab.ctx.layout.home / name, lab.ctx.layout.hot / name
    try:
        for folder in folders:
            folder.mkdir()
        yield folders
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


async def pause_ms(marks: Watch) -> float:
    """Return the time between the events STOP and RESUME of a watch."""
    stop = await marks.until(lambda event: event["event"] == "STOP", "the STOP event", EVENT_DEADLINE_S)
    resume = await marks.until(lambda event: event["event"] == "RESUME", "the RESUME event", EVENT_DEADLINE_S)
    return (event_ns(resume) - event_ns(stop)) / 1e6
