"""Containers of the application: the files of the guest's image as their root, read-only, each with a network of its own.

    image's disk ── debugfs ──> root ──┬─ crun ── python3 warm_app.py      namespaces of its own; /dev, /tmp, /var/lib: tmpfs
                                       └─ ...                              eth0 ═ veth ═ the lab's bridge

Without a daemon: crun is run for each. And without cgroups, which may not be there, or be of a kind that crun refuses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liveclone.errors import HypervisorError
from liveclone.host import command, netns, process
from liveclone.ids import new_id

from ..lab import Lab
from . import app
from .base import Copy

DEADLINE_S = 120.0
PROGRAM, PACKAGE = "crun", "crun"
CONFIG, LOG, PID = "config.json", "log", "pid"
# What stands before crun: it looks at the host's cgroups even where it is to use none, and refuses those of both versions.
HIDDEN = (
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$0" "$@"'),
)
NAMESPACES = ("pid", "ipc", "uts", "mount")
MOUNTS = (
    ("/proc", "proc", ()),
    ("/sys", "sysfs", ("ro", "nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", ("mode=755", "nosuid")),
    ("/tmp", "tmpfs", ()),
    ("/var/lib", "tmpfs", ()),
)


@dataclass
class Network:
    """A network namespace on the lab's bridge. `end` it."""

    lab: Lab
    id: str
    name: str
    address: str

    async def end(self) -> None:
        if netns.exists(self.name):
            await _ip("netns", "delete", self.name)  # its end of the pair goes with it, and so does the other
        self.lab.ctx.leases.free(self.id)


@dataclass
class Containers:
    """Containers of one root. `end` ends them with all that belongs to them."""

    lab: Lab
    root: Path
    folder: Path
    running: list[str] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)

    async def start(self, words: Sequence[str] = app.COMMAND) -> Copy:
        """Start one that runs this command.

        Raises:
            HypervisorError: crun says no.
        """
        network = await self.open_network()
        bundle = self.folder / network.id
        bundle.mkdir()
        config = render_config(self.root, words, network)
        (bundle / CONFIG).write_text(json.dumps(config))
        self.running.append(network.id)
        options = ["--detach", "--bundle", str(bundle), "--pid-file", str(bundle / PID)]
        crun = process.start([*self._crun(), "run", *options, network.id], cwd=bundle, log=bundle / LOG)
        await process.wait(crun, DEADLINE_S)
        return copy_in(network, bundle)

    async def open_network(self) -> Network:
        """Make a network namespace, with an address on the bridge; it ends with the containers."""
        ctx, one = self.lab.ctx, new_id()
        name, link = f"{ctx.layout.namespace}-{one}", f"c{one}"[:15]
        _, cidr = ctx.leases.take(one)
        network = Network(self.lab, one, name, cidr.partition("/")[0])
        self.networks.append(network)
        await _ip("netns", "add", name)
        bridge = ctx.network_spec().bridge
        pair = f"link add {link} type veth peer name eth0 netns {name}\nlink set {link} master {bridge} up\n"
        await _ip("-n", ctx.layout.namespace, "-batch", "-", stdin=pair)
        await _ip(
            "-n",
            name,
            "-batch",
            "-",
            stdin=f"link set lo up\naddress add {cidr} dev eth0\nlink set eth0 up\n",
        )
        return network

    async def end(self) -> None:
        while self.running:
            one = self.running.pop()
            await command.run([*self._crun(), "delete", "--force", one], deadline_s=DEADLINE_S)
            shutil.rmtree(self.folder / one, ignore_errors=True)
        while self.networks:
            await self.networks.pop().end()

    def _crun(self) -> list[str]:
        return [*HIDDEN, PROGRAM, "--root", str(self.folder / "state"), "--cgroup-manager", "disabled"]


def render_config(root: Path, words: Sequence[str], network: Network) -> dict[str, Any]:
    """Return a bundle's configuration (OCI runtime specification 1.0.2)."""
    spaces = [{"type": kind} for kind in NAMESPACES]
    mounts = [
        {"destination": place, "type": kind, "source": kind, "options": list(options)}
        for place, kind, options in MOUNTS
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(words),
            "env": ["PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": network.id,
        "mounts": mounts,
        "linux": {"namespaces": [*spaces, {"type": "network", "path": f"/run/netns/{network.name}"}]},
    }


def copy_in(network: Network, bundle: Path) -> Copy:
    """Return the container that has just been started.

    Raises:
        HypervisorError: there is none.
    """
    try:
        pid = int((bundle / PID).read_text())
    except (OSError, ValueError) as error:
        raise HypervisorError(
            f"{PROGRAM} did not start a container",
            code="cannot-start",
            tried=f"{PROGRAM} run",
            on=network.id,
            seen=(bundle / LOG).read_text().strip()[-300:],
        ) from error
    return Copy(network.id, network.lab.ctx.layout.namespace, network.address, (pid,))


async def make_root(lab: Lab, folder: Path) -> Path:
    """Take the files of the application's image out of its disk, and return the folder with them."""
    raw, root = folder / "disk.raw", folder / "root"
    disk = lab.ctx.images.load(app.IMAGE.name).disk
    root.mkdir()
    await command.run(["qemu-img", "convert", "-O", "raw", disk, str(raw)], deadline_s=DEADLINE_S)
    await command.run(["debugfs", "-R", f"rdump / {root}", str(raw)], deadline_s=DEADLINE_S)
    raw.unlink()
    return root


async def _ip(*words: str, stdin: str | None = None) -> None:
    data = None if stdin is None else stdin.encode()
    await command.run(["ip", *words], deadline_s=DEADLINE_S, stdin=data, package="iproute2")
