"""Where the libvirt driver is measured: a libvirtd of its own, an ordinary domain, and a save image for `virsh restore`.

    open_libvirt ── libvirtd, with our hook ── open_domain ── (boot, adopt, fill) ── measure ── remove ─┐
        └── ends libvirtd with all that it has started, removes its folders <────────────────┘   also when interrupted

The libvirtd is that of the tests (tests/libvirtd.py): our thread enters its mount namespace, so threads that were there
before are not asked for anything in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from liveclone.drivers.libvirt import hook_install
from liveclone.drivers.libvirt.split import RAM, read_header
from liveclone.engine import adopt, parts
from liveclone.engine.context import open_context
from liveclone.formats import domain_rewrite, libvirt_save, stream_join
from liveclone.host import command, files
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from liveclone.model.snapshot import Snapshot
from liveclone.units import MIB
from tests.libvirt_domains import Shape, make_domain, open_agent
from tests.libvirtd import Libvirtd

from . import lab as laboratory
from .lab import IMAGE, Lab

TOOLS = ("libvirtd", "virsh", "unshare", "nsenter")
BOOT_DEADLINE_S = 180.0
RESTORE_DEADLINE_S = 300.0


@dataclass
class Libvirt:
    """A laboratory whose machines are libvirt's; `connection` is a virConnect. Files may be put into both folders."""

    lab: Lab
    uri: str
    connection: Any
    disk_folder: Path
    hot_folder: Path  # on tmpfs

    async def end(self, name: str) -> None:
        """End a domain; one that has no definition is gone then."""
        domain = await asyncio.to_thread(self.connection.lookupByName, name)
        await asyncio.to_thread(domain.destroy)


def find_obstacle() -> str:
    """Return why libvirt cannot be measured here; empty if it can."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    try:
        import libvirt  # noqa: F401
    except ImportError:
        missing.append("python3-libvirt")
    if missing:
        return f"missing: {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "only root can start a libvirtd of its own"


@contextlib.asynccontextmanager
async def open_libvirt(lab: Lab) -> AsyncIterator[Libvirt]:
    """Start a libvirtd with our hook and make a home for its machines; neither is there afterwards."""
    import libvirt

    home, hot = lab.ctx.layout.home / "libvirt", lab.ctx.layout.hot / "libvirt"
    folder = home / "daemon"
    for new in (folder / "etc" / "hooks", hot):
        new.mkdir(parents=True)
    hook_install.install(folder / "etc" / "hooks", images=[hot])
    cache = Path(os.environ.get("LIVECLONE_DEV_CACHE") or Path(__file__).parent.parent / ".dev" / "cache")
    with Libvirtd(folder, hot=hot / "daemon", cache=cache / "libvirt") as daemon, _threads_inside():
        settings = replace(
            lab.ctx.settings,
            home=home / "home",
            hot=hot / "home",
            driver="libvirt",
            libvirt_uri=daemon.uri,
            network=NetworkKind.LIBVIRT,
        )
        ctx = open_context(settings)
        ctx.images = lab.ctx.images
        libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what it also raises
        connection = await asyncio.to_thread(libvirt.open, daemon.uri)
        try:
            yield Libvirt(replace(lab, ctx=ctx), daemon.uri, connection, home, hot)
        finally:
            connection.close()


@contextlib.contextmanager
def _threads_inside() -> Iterator[None]:
    """Give asyncio new threads: those that it has see another libvirt, and so would these when all is over."""
    loop = asyncio.get_running_loop()
    inside = ThreadPoolExecutor(thread_name_prefix="libvirt")
    loop.set_default_executor(inside)
    try:
        yield
    finally:
        loop.set_default_executor(ThreadPoolExecutor())
        inside.shutdown()


@contextlib.asynccontextmanager
async def open_domain(host: Libvirt, ram_mib: int) -> AsyncIterator[tuple[Machine, Path]]:
    """Boot a domain, adopt it and let it fill its memory; gives the machine, and the log of its serial console."""
    lab, name = host.lab, f"shop-{ram_mib}"
    disks = host.disk_folder / "disks"
    disks.mkdir(exist_ok=True)
    log = disks / f"{name}.log"
    began = time.monotonic()
    shape = Shape(ram_mib=ram_mib, console_log=str(log))
    image = lab.ctx.images.load(IMAGE)
    domain = await asyncio.to_thread(make_domain, host.connection, image, disks, shape, name)
    try:
        async with open_agent(domain) as agent:
            await agent.call("ping", deadline_s=BOOT_DEADLINE_S)
        lab.say(f"  {ram_mib} MiB: booted in {time.monotonic() - began:.1f} s")
        machine = await adopt.adopt(lab.ctx, name)
        filled = await laboratory.load(lab, machine, "fill")
        lab.say(f"    {filled} MiB filled")
        yield machine, log
    finally:
        await asyncio.shield(laboratory.remove_all(lab.ctx))
        await asyncio.to_thread(domain.destroy)
        await asyncio.to_thread(domain.undefine)


def find_pid(name: str) -> int:
    """Return the QEMU of a running domain, as libvirt has noted it."""
    return int(Path("/run/libvirt/qemu", f"{name}.pid").read_text())


class SaveImage:
    """A whole save image: what `virsh save` would have written of the source, with a name and a disk of the clone's own.

    An administrator makes it with `virsh save-image-edit`; so its making is in no figure.
    """

    def __init__(self, host: Libvirt, taken: Snapshot, path: Path) -> None:
        self.path, self._host, self._taken = path, host, taken
        self._state = host.lab.ctx.layout.snapshot(taken.id) / taken.device_state.file
        self._header = read_header(self._state)
        self._count = 0

    def write(self) -> None:
        """Write all of it; the header has room for every clone's."""
        assert self._taken.hot is not None
        head = libvirt_save.render_header(replace(self._header, data_bytes=0))
        with self._state.open("rb") as state, open(self._taken.hot.path, "rb", buffering=0) as image:
            state.seek(self._header.stream_offset)
            size = os.fstat(image.fileno()).st_size
            pages = files.read_data(image.fileno(), size)
            with self.path.open("xb", buffering=0) as target:
                target.write(head)
                for piece in stream_join.join(state.read(), pages, size_bytes=size, block=RAM):
                    target.write(piece)
        self._header = replace(self._header, data_bytes=len(head) - libvirt_save.FIXED_BYTES)

    def address(self) -> str:
        """Make it that of another clone, with a new disk, and return the clone's name."""
        self._count += 1
        name = f"{self.path.stem}-{self._count}"
        taken, folder = self._taken, self._host.disk_folder / "disks"
        disk = folder / f"{name}.qcow2"
        disk.unlink(missing_ok=True)
        below = self._host.lab.ctx.layout.snapshot(taken.id) / taken.disk.file
        parts.make_overlay(disk, below, taken.disk_bytes, taken.disk_format)
        spec = domain_rewrite.CloneSpec(
            name=name,
            uuid=str(uuid4()),
            disks={"vda": (str(disk), "qcow2")},
            console_log=str(folder / f"{name}.log"),
        )
        xml = domain_rewrite.rewrite_saved(self._header.xml, spec)
        with self.path.open("r+b", buffering=0) as file:
            file.write(libvirt_save.render_header(replace(self._header, xml=xml)))
        return name

    def forget_cached(self) -> None:
        """Have the kernel forget what it has of the file in memory; on tmpfs that is the file itself, and stays."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())  # only what is on the disk can be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    async def restore(self) -> tuple[str, float]:
        """Let virsh restore it, running; return the domain's name, and the seconds that it took."""
        name = await asyncio.to_thread(self.address)
        await asyncio.to_thread(self.forget_cached)
        began = time.monotonic()
        argv = ["virsh", "--connect", self._host.uri, "restore", str(self.path), "--running"]
        await command.run(argv, deadline_s=RESTORE_DEADLINE_S)
        return name, time.monotonic() - began

    @property
    def size_mib(self) -> float:
        return self.path.stat().st_size / MIB
