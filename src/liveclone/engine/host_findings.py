"""What speaks for and against a host: one judgement a fact, each with its advice. `doctor` puts the questions.

`judge_` is pure where it is given what was seen, and looks at the host itself where it is not.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..drivers.libvirt import probe
from ..drivers.qemu import argv
from ..host import acceleration, machine
from ..model import base
from ..model.base import Value
from ..model.machine import Acceleration
from ..units import GIB, render_size

# 7.2 crashes Linux 6.12 guests under TCG at random, and cannot map a memory image read-only (FACTS: 8.2 can).
OLDEST_QEMU = (8, 2)

# What the command line of drivers/qemu/argv.py names. Distributions split some of them into packages of their own.
DEVICES = (
    "pcie-root-port",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-rng-pci",
    "virtio-serial-pci",
    "vmgenid",
)

# Debian's package of each program, and what it is for.
TOOLS = {
    "qemu-img": ("qemu-utils", "importing disks"),
    "mmdebstrap": ("mmdebstrap", "building images"),
    "mke2fs": ("e2fsprogs", "building images"),
    "setpriv": ("util-linux", "building images"),
    "unshare": ("util-linux", "building images"),
    "busybox": ("busybox-static", "the initramfs of built images"),
    "ssh-keygen": ("openssh-client", "looking at host keys"),
    "newuidmap": ("uidmap", "building images without root"),
}

# One guest of 512 MiB with its hot memory image and room for a few clones' private pages.
LITTLE_MEMORY = 1 * GIB
LITTLE_HOT = 1 * GIB
# A built image takes about 1 GiB while it is made; a sealed snapshot as much as its guest has RAM in use.
LITTLE_DISK = 4 * GIB
# A command that starts 32 clones holds some ten descriptors for each.
FEW_FILES = 512
FEW_PROCESSES = 256


class Verdict(enum.Enum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Value, frozen=True, kw_only=True):
    """One thing that was looked at. `next_step` is empty when there is nothing to do."""

    name: str
    verdict: Verdict
    seen: str
    next_step: str = ""
    facts: dict[str, str | int | bool | list[str] | None] = {}


def judge_acceleration(choice: acceleration.Choice) -> Finding:
    """Judge how processors are run."""
    kvm = choice.acceleration is Acceleration.KVM
    return Finding(
        name="acceleration",
        verdict=Verdict.OK if kvm else Verdict.WARNING,
        seen=choice.reason if kvm else f"software emulation (TCG), several times slower: {choice.reason}",
        next_step=choice.next_step,
        facts={"acceleration": choice.acceleration.value, "cpus": machine.cpus()},
    )


def judge_qemu(path: str | None, version_text: str, devices: str) -> Iterator[Finding]:
    """Judge QEMU: its version, and the devices that our machines have."""
    install = "apt install qemu-system-x86 (on Debian 12 from bookworm-backports)"
    if path is None:
        seen = f"{argv.BINARY} is not installed"
        yield Finding(name="qemu", verdict=Verdict.PROBLEM, seen=seen, next_step=install)
        return
    version = read_version(version_text)
    text = ".".join(map(str, version))
    if not version:
        yield Finding(name="qemu", verdict=Verdict.PROBLEM, seen=f"{path} does not run", next_step=install)
        return
    new_enough = version >= OLDEST_QEMU
    yield Finding(
        name="qemu",
        verdict=Verdict.OK if new_enough else Verdict.PROBLEM,
        seen=f"QEMU {text}, {path}" + ("" if new_enough else ", older than 8.2"),
        next_step="" if new_enough else install,
        facts={"path": path, "version": text, "read_only_ram": new_enough},
    )
    missing = [name for name in DEVICES if f'name "{name}"' not in devices]
    yield Finding(
        name="devices",
        verdict=Verdict.PROBLEM if missing else Verdict.OK,
        seen="missing: " + ", ".join(missing) if missing else "all there, VMGENID among them",
        next_step="install the whole of qemu-system-x86, or a QEMU built with them" if missing else "",
        facts={"missing": missing},
    )


def read_version(text: str) -> tuple[int, ...]:
    """Return (10, 0, 2) for "QEMU emulator version 10.0.2 (Debian ...)", () when there is none."""
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def judge_background() -> Finding:
    """Judge whether memory can be captured in the background."""
    possible = machine.may_write_protect_memory()
    return Finding(
        name="background-snapshot",
        verdict=Verdict.OK if possible else Verdict.WARNING,
        seen="memory can be write-protected while it is copied"
        if possible
        else "this user may not use userfaultfd as QEMU must: a machine's second snapshot, and any of a clone, "
        "cannot be taken in the background",
        next_step="" if possible else "run as root, or sysctl vm.unprivileged_userfaultfd=1",
        facts={"possible": possible},
    )


def judge_memory(memory: machine.Memory) -> Finding:
    """Judge what RAM is left."""
    enough = memory.available_bytes >= LITTLE_MEMORY
    limited = f" (limited by {memory.limited_by})" if memory.limited_by else ""
    return Finding(
        name="memory",
        verdict=Verdict.OK if enough else Verdict.WARNING,
        seen=f"{render_size(memory.available_bytes)} available of {render_size(memory.total_bytes)}{limited}",
        next_step="" if enough else "stop other programs, or give machines less memory",
        facts={"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes},
    )


def judge_hot(hot: Path, system: machine.FileSystem) -> Finding:
    """Judge the folder of the memory images, which must be on tmpfs: RAM is mapped from there, and shared."""
    verdict, next_step = Verdict.OK, ""
    if system.kind != "tmpfs":
        verdict = Verdict.PROBLEM
        next_step = "set LIVECLONE_HOT to a folder on tmpfs, for instance /dev/shm/liveclone"
    elif not system.writable:
        verdict = Verdict.PROBLEM
        next_step = "set LIVECLONE_HOT to a folder on tmpfs that this user can write"
    elif system.free_bytes < LITTLE_HOT:
        verdict = Verdict.WARNING
        next_step = f"enlarge it: mount -o remount,size=75% {system.mount} (in a container: --shm-size)"
    return _folder("hot-folder", hot, system, verdict, next_step)


def judge_home(home: Path, system: machine.FileSystem) -> Finding:
    """Judge the folder of the state."""
    verdict, next_step = Verdict.OK, ""
    reflink = system.writable and machine.can_reflink(system.folder)
    if not system.writable:
        verdict, next_step = Verdict.PROBLEM, "set LIVECLONE_HOME to a folder that this user can write"
    elif system.free_bytes < LITTLE_DISK:
        verdict, next_step = Verdict.WARNING, "free some space, or set LIVECLONE_HOME to a folder elsewhere"
    return _folder("home-folder", home, system, verdict, next_step, reflink=reflink)


def _folder(
    name: str, path: Path, system: machine.FileSystem, verdict: Verdict, next_step: str, **facts: bool
) -> Finding:
    about = [system.kind, f"{render_size(system.free_bytes)} free of {render_size(system.total_bytes)}"]
    about += [] if system.exists else ["made when needed"]
    about += [] if system.writable else [f"{system.folder} is not writable"]
    about += [word.replace("_", " ") for word, true in facts.items() if true]
    return Finding(
        name=name,
        verdict=verdict,
        seen=f"{path}: " + ", ".join(about),
        next_step=next_step,
        facts={
            "path": str(path),
            "exists": system.exists,
            "writable": system.writable,
            "file_system": system.kind,
            "total_bytes": system.total_bytes,
            "free_bytes": system.free_bytes,
            **facts,
        },
    )


def judge_limits(limits: dict[str, int | None]) -> Finding:
    """Judge the limits of this process, which the machines it starts inherit."""
    low = [
        f"{name} {limits[name]}, want {want}"
        for name, want in (("open-files", FEW_FILES), ("processes", FEW_PROCESSES))
        if (have := limits[name]) is not None and have < want
    ]
    size = limits["file-size-bytes"]
    if size is not None:
        low.append(f"file-size {size} bytes: memory images will not fit")
    shown = (f"{name} {'unlimited' if value is None else value}" for name, value in limits.items())
    return Finding(
        name="limits",
        verdict=Verdict.WARNING if low else Verdict.OK,
        seen="too low: " + "; ".join(low) if low else ", ".join(shown),
        next_step="raise them with ulimit, or in /etc/security/limits.d" if low else "",
        facts={**limits},
    )


def judge_network(*, can_unshare: bool) -> Finding:
    """Judge which network machines can have."""
    allowed = machine.may_make_networks()
    tun = allowed and machine.can_open(Path("/dev/net/tun"))
    namespace = allowed and can_unshare
    if allowed and tun and namespace:
        verdict, seen, next_step = (
            Verdict.OK,
            "bridge: machines see one another, connections survive a snapshot",
            "",
        )
    elif not allowed:
        verdict = Verdict.WARNING
        seen = "user: without root there is no bridge, and a snapshot breaks the source's connections"
        next_step = "run as root for a bridge"
    else:
        missing = "/dev/net/tun does not open" if not tun else "no network namespace can be made"
        verdict, seen = Verdict.WARNING, f"user: {missing}"
        next_step = "modprobe tun" if not tun else "give the container CAP_SYS_ADMIN, or run outside of it"
    facts = {"bridge": verdict is Verdict.OK, "root": machine.is_root(), "tun": tun, "namespaces": namespace}
    return Finding(name="network", verdict=verdict, seen=seen, next_step=next_step, facts={**facts})


def judge_libvirt(sight: probe.Sight) -> Finding:
    """Tell what libvirt is here; who does not use it needs none."""
    if not sight.library:
        seen = f"cannot be used ({sight.error}); for its domains: pip install 'liveclone[libvirt]'"
    elif not sight.daemon:
        seen = f"library {sight.library}, and no daemon answers: {sight.error}"
    else:
        seen = f"{sight.daemon} at {sight.uri}"
        seen += f", {sight.hypervisor}, {sight.emulator}" if sight.hypervisor else f": {sight.error}"
        if sight.hooks:
            seen += f"; hooks in {sight.hooks}: {', '.join(sight.scripts) or 'none'}"
        if sight.memory_folder:
            seen += f"; RAM files in {sight.memory_folder}"
    return Finding(
        name="libvirt",
        verdict=Verdict.OK,
        seen=seen,
        facts={**base.builtins(sight), "scripts": list(sight.scripts)},
    )


def judge_tools() -> Iterator[Finding]:
    """Judge the programs that are needed besides QEMU: a finding for each that is missing, one for the rest."""
    paths = {name: machine.find_tool(name) for name in TOOLS if name != "newuidmap" or not machine.is_root()}
    missing = [name for name, path in paths.items() if path is None]
    busybox = paths["busybox"]
    if busybox is not None and not machine.is_static(Path(busybox)):
        missing.append("busybox")
    for name in missing:
        package, purpose = TOOLS[name]
        yield Finding(
            name=f"tool {name}",
            verdict=Verdict.WARNING,
            seen=f"{'not static' if paths[name] else 'not installed'}: {purpose} will not work",
            next_step=f"apt install {package}",
            facts={"path": paths[name]},
        )
    present = {name: path for name, path in paths.items() if name not in missing}
    if present:
        yield Finding(name="tools", verdict=Verdict.OK, seen=", ".join(present), facts={**present})


def judge_user_ids(missing: Sequence[str]) -> Iterator[Finding]:
    """Judge whether a user who is not root can build images; `missing` are files without a line for them."""
    if missing:
        yield Finding(
            name="user-ids",
            verdict=Verdict.WARNING,
            seen=f"no line for this user in {', '.join(missing)}: building images without root will not work",
            next_step="build as root, or: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
            facts={"missing": list(missing)},
        )


def judge_python() -> Finding:
    """Tell which Python this is."""
    return Finding(
        name="python",
        verdict=Verdict.OK,  # an older one cannot even read this file
        seen=f"Python {sys.version.split()[0]}, {sys.executable}",
        facts={"version": sys.version.split()[0], "path": sys.executable},
    )
