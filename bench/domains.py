"""Where the libvirt driver is measured: a libvirtd of its own, and an ordinary domain.

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
from typing import TYPE_CHECKING, Any

from liveclone.drivers.libvirt import hook_install
from liveclone.engine import adopt
from liveclone.engine.context import open_context
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from tests.libvirt_domains import Shape, make_domain, open_agent
from tests.libvirtd import Libvirtd

from . import lab as laboratory
from .lab import IMAGE, Lab

if TYPE_CHECKING:
    from liveclone.drivers.libvirt.link import Watch

TOOLS = ("libvirtd", "virsh", "unshare", "nsenter")
BOOT_DEADLINE_S = 180.0
EVENT_DEADLINE_S = 10.0  # when all is done: it is on its way


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
    home, hot = lab.ctx.layout.home / "libvirt", lab.ctx.layout.hot / "libvirt"
    hooks = home / "daemon" / "etc" / "hooks"
    for new in (hooks, hot):
        new.mkdir(parents=True)
    hook_install.install(hooks, images=[hot])
    async with open_daemon(home, hot) as (uri, connection):
        settings = replace(
            lab.ctx.settings,
            home=home / "home",
            hot=hot / "home",
            driver="libvirt",
            libvirt_uri=uri,
            network=NetworkKind.LIBVIRT,
        )
        ctx = open_context(settings)
        ctx.images = lab.ctx.images
        yield Libvirt(replace(lab, ctx=ctx), uri, connection, home, hot)


@contextlib.asynccontextmanager
async def open_daemon(home: Path, hot: Path, namespace: str = "") -> AsyncIterator[tuple[str, Any]]:
    """Start a libvirtd, with what is in `home`/daemon; gives its URI and a connection (virConnect).

    Args:
        hot: a folder on tmpfs.
        namespace: name of the network namespace for its domains; one of its own without.
    """
    import libvirt

    cache = Path(os.environ.get("LIVECLONE_DEV_CACHE") or Path(__file__).parent.parent / ".dev" / "cache")
    daemon = Libvirtd(home / "daemon", hot=hot / "daemon", cache=cache / "libvirt", namespace=namespace)
    with daemon, _threads_inside():
        libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what it also raises
        connection = await asyncio.to_thread(libvirt.open, daemon.uri)
        try:
            yield daemon.uri, connection
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


class Cards:
    """The cards that a domain has lost and got back; use `open_cards`."""

    def __init__(self, watch: Watch, cards: int, removed: int) -> None:
        self._watch, self._cards, self._removed = watch, cards, removed

    async def away_s(self) -> float:
        """Return the time from the first card's going to the coming of the last, in seconds.

        Raises:
            TimedOut: they have not all gone and come.
        """
        events = [
            await self._watch.until(lambda _: True, "plugging a card", EVENT_DEADLINE_S)
            for _ in range(2 * self._cards)
        ]
        gone = [event.at for event in events if event.kind == self._removed]
        assert len(gone) == self._cards, events
        return max(event.at for event in events) - min(gone)


@contextlib.asynccontextmanager
async def open_cards(host: Libvirt, machine: Machine) -> AsyncIterator[Cards]:
    """See in the block when libvirt tells that a card of the domain is out, and in again. It has one at least."""
    import libvirt

    from liveclone.drivers.libvirt.link import open_link

    link = await open_link(host.uri, machine.name)
    try:
        domain = await link.call("finding it", link.connection.lookupByUUIDString, machine.domain)
        kinds = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED
        async with link.watch(domain, *kinds) as watch:
            yield Cards(watch, len(machine.nics), kinds[0])
    finally:
        await link.close()


def find_pid(name: str) -> int:
    """Return the QEMU of a running domain, as libvirt has noted it."""
    return int(Path("/run/libvirt/qemu", f"{name}.pid").read_text())
