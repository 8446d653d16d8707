"""The guest's file system: mmdebstrap makes it as a tar archive, mke2fs puts that into a disk.

    sources ─┐
    payload ─┴─> mmdebstrap ──> root.tar ──> folder ──> mke2fs -d ──> disk.raw ──> qemu-img convert ──> disk.qcow2

As root mmdebstrap works in a mount and process namespace of its own: they end with their first process, so whatever
happens to it no mount and no process stays. Without root it uses a user namespace with the user's subordinate ids
(package uidmap), and so does what unpacks the archive. Only mmdebstrap's documented options are used: its own clean-up
has run before the archive is written.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import StoreError, Unsupported
from ..guest import pack
from ..host import command, machine
from ..host.apt_sources import Mirror
from . import spec, system
from .spec import ImageSpec

Progress = Callable[[str, float | None], None]

PACKAGES = ("dbus", "iproute2", "login", "openssh-server", "python3", "systemd-sysv", "tar")

# Half a minute where downloads are fast; a slow line may take an hour for a large set of packages.
_BUILD_DEADLINE_S = 2 * 3600.0
_DISK_DEADLINE_S = 1800.0
# Programs of root are not on everybody's PATH.
_ENV = {"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}

_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
}

# What mmdebstrap says, and how far the whole build is then (shares of the 35 s that one takes).
_PHASES = (
    ("running apt-get update", "reading package lists", 0.02),
    ("downloading packages", "downloading packages", 0.08),
    ("extracting archives", "unpacking the base system", 0.14),
    ("installing essential", "installing the base system", 0.25),
    ("installing remaining", "installing packages", 0.35),
    ("running special hook", "copying files", 0.70),
    ("running --customize-hook", "setting up the guest", 0.72),
    ("cleaning package lists", "cleaning up", 0.76),
    ("creating tarball", "packing the file system", 0.78),
)


def check_host() -> None:
    """See that this host has what a build needs, before minutes are spent on it.

    Raises:
        Unsupported: a program is missing (the message names its package), or there are no user ids to build with.
    """
    for program, package in _TOOLS.items():
        if shutil.which(program, path=_ENV["PATH"]) is None:
            raise Unsupported(
                f"{program} is not installed",
                code="missing-tool",
                tried="building an image",
                on=program,
                seen="not on the PATH",
                next_step=f"apt install {package}",
            )
    if os.geteuid() != 0:
        _check_namespaces()


def plan_packages(image: ImageSpec, mirror: Mirror) -> list[str]:
    """Return everything that apt is asked to install."""
    certificates = ("ca-certificates",) if mirror.needs_certificates else ()
    return sorted({*PACKAGES, image.kernel, *image.packages, *certificates})


def render_mmdebstrap(
    image: ImageSpec, mirror: Mirror, payload: Path, target: Path, *, root: bool
) -> list[str]:
    """Return the command that makes `target`; it reads the guest's sources from standard input."""
    inside = f"{system.BUILD}.tar"
    hook = (
        f'set -e; umask 022; chroot "$1" tar -xpf {inside} -C / --no-overwrite-dir --keep-directory-symlink; '
        f'rm "$1{inside}"; chroot "$1" sh {system.BUILD}/setup'
    )
    return [
        # Without root mmdebstrap is asked to end, for it alone can remove the files of its user ids.
        *_tied("KILL" if root else "TERM"),
        *(["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"] if root else []),
        "mmdebstrap",
        f"--mode={'root' if root else 'unshare'}",
        "--variant=apt",
        "--format=tar",
        f"--include={','.join(plan_packages(image, mirror))}",
        f"--customize-hook=upload {_quote(payload)} {inside}",
        f"--customize-hook={hook}",
        image.suite,
        str(target),
        "-",
    ]


async def make_tar(image: ImageSpec, mirror: Mirror, folder: Path, progress: Progress) -> Path:
    """Build the guest's root as an archive in `folder` and return its path.

    Raises:
        StoreError: mmdebstrap failed; its last lines are in `seen`.
    """
    root = os.geteuid() == 0
    payload, target = folder / "payload.tar", folder / "root.tar"
    write_payload(image, payload)
    scratch = folder / "scratch"
    scratch.mkdir()

    def tell(line: str) -> None:
        for words, phase, fraction in _PHASES:
            if line.startswith(f"I: {words}"):
                progress(phase, fraction)

    env = {
        **await _find_proxies(),
        **_ENV,
        "INITRD": "No",  # the kernel's package then builds no initramfs: machines boot ours
        # In a user namespace only folders that everybody may enter will do.
        **({"TMPDIR": str(scratch)} if root else {"TMPDIR": "/var/tmp"}),
    }
    await command.run(
        render_mmdebstrap(image, mirror, payload, target, root=root),
        deadline_s=_BUILD_DEADLINE_S,
        on_line=tell,
        env=env,
        stdin=mirror.render(image.suite).encode(),
        cwd=folder,
        name="mmdebstrap",
    )
    return target


async def make_disk(archive: Path, size_bytes: int, folder: Path, progress: Progress) -> Path:
    """Turn the archive into `disk.qcow2` in `folder` and return its path.

    Raises:
        StoreError: it does not fit, or the host's disk is full.
    """
    progress("making the file system", 0.84)
    raw, disk, tree = folder / "disk.raw", folder / "disk.qcow2", folder / "tree"
    with raw.open("xb") as file:
        file.truncate(size_bytes)
    # No device nodes: devtmpfs lies over them, and a user namespace may not make any. A small journal keeps what a
    # guest writes, and so its snapshots' layers, small.
    script = (
        'set -e; umask 022; mkdir "$2"; tar --numeric-owner --xattrs --xattrs-include="*" --exclude="./dev/*" '
        '-xpf "$1" -C "$2"; mke2fs -q -F -t ext4 -L liveclone -m 1 -J size=16 -d "$2" "$3"; rm -rf "$2"'
    )
    try:
        await command.run(
            [*_tied("KILL"), *_as_root(), "sh", "-c", script, "sh", str(archive), str(tree), str(raw)],
            deadline_s=_DISK_DEADLINE_S,
            env=_ENV,
            name="making the file system",
        )
    except StoreError as error:
        error.next_step = error.next_step or "give the image a larger disk, and see that this one has room"
        raise
    finally:
        if tree.exists():
            await command.run([*_as_root(), "rm", "-rf", str(tree)], deadline_s=_DISK_DEADLINE_S)
    progress("converting the disk", 0.94)
    await command.run(
        [*_tied("KILL"), "qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)],
        deadline_s=_DISK_DEADLINE_S,
        env=_ENV,
        name="qemu-img",
    )
    raw.unlink()
    return disk


def _tied(signal: str) -> list[str]:
    """Return what stands before a command that shall get this signal when we die."""
    return ["setpriv", f"--pdeathsig={signal}", "--"]


def _as_root() -> list[str]:
    """Return what stands before a command that has to own files of several users."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--"]


def write_payload(image: ImageSpec, target: Path) -> None:
    """Write the archive of all that goes into the guest from the host: our files, the agent, the user's."""
    with tarfile.open(target, "x", format=tarfile.PAX_FORMAT) as archive:
        for entry in system.list_files():
            _add(archive, entry.path, entry.data, entry.permissions, entry.link)
        _add(archive, system.AGENT, pack.render(), 0o644)
        _add(archive, f"/etc/systemd/system/{system.SERVICE}", pack.SERVICE.read_bytes(), 0o644)
        _add(archive, f"{system.BUILD}/setup", system.SETUP.encode(), 0o644)
        if image.script is not None:
            _add(archive, f"{system.BUILD}/script", image.script.read_bytes(), 0o755)
        if image.root_password is not None:
            line = f"root:{image.root_password.reveal()}\n"
            _add(archive, f"{system.BUILD}/password", line.encode(), 0o600)
        for source, path in image.files:
            _add_from_host(archive, source, path)


def _add_from_host(archive: tarfile.TarFile, source: Path, path: str) -> None:
    for found in spec.walk(source):
        inside = path.rstrip("/") if found == source else f"{path.rstrip('/')}/{found.relative_to(source)}"
        entry = archive.gettarinfo(str(found.resolve() if found == source else found), inside.lstrip("/"))
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        if entry.isreg():
            with found.open("rb") as file:
                archive.addfile(entry, file)
        elif entry.isdir() or entry.issym():
            archive.addfile(entry)
        elif entry.islnk():  # a file that came before under another name: store it again
            entry.type = tarfile.REGTYPE
            entry.size = found.stat().st_size
            with found.open("rb") as file:
                archive.addfile(entry, file)


def _add(archive: tarfile.TarFile, path: str, data: bytes | None, permissions: int, link: str = "") -> None:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.mtime = int(time.time())
    entry.mode = permissions
    if link:
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, link, 0o777
    elif data is None:
        entry.type = tarfile.DIRTYPE
    else:
        entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data or b""))


async def _find_proxies() -> dict[str, str]:
    """Return the proxies that this host's apt uses, as variables: mmdebstrap's apt does not read our configuration."""
    ask = [
        "apt-config",
        "shell",
        "http_proxy",
        "Acquire::http::Proxy",
        "https_proxy",
        "Acquire::https::Proxy",
    ]
    told = await command.run(ask, deadline_s=60.0, package="apt", failure=Unsupported)
    pairs = (word.partition("=") for word in shlex.split(told))
    return {name: value for name, _, value in pairs if value not in ("", "DIRECT") and name not in os.environ}


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def _check_namespaces() -> None:
    missing = machine.find_missing_ids()
    if shutil.which("newuidmap", path=_ENV["PATH"]) and not missing:
        return
    raise Unsupported(
        "without root, building an image needs subordinate user ids",
        code="no-subuids",
        tried="preparing a user namespace",
        on=f"user {os.getuid()}",
        seen=f"no line for this user in {', '.join(missing)}" if missing else "newuidmap is not installed",
        next_step="build as root, or: apt install uidmap, then: usermod --add-subuids 100000-165535 "
        "--add-subgids 100000-165535 USER",
    )
