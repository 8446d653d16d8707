"""What this host has: processors, memory, file systems, limits, privileges, tools.

Plain facts, read afresh at each call and never judged here; engine/host_findings.py judges, and the engine asks
for memory before it starts machines. Everything comes from /proc and from calls that change nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

# linux/fs.h: FICLONE, _IOW(0x94, 9, int): make one file share another's blocks.
_FICLONE = 0x40049409
# linux/capability.h
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_SYS_PTRACE = 12, 21, 19


@dataclass(frozen=True)
class Memory:
    """Bytes of RAM that may be used here: the machine's, or less where a cgroup allows less."""

    total_bytes: int
    available_bytes: int
    limited_by: str = ""  # the cgroup file that allows less; empty when the machine itself is the limit


@dataclass(frozen=True)
class FileSystem:
    """What a folder is on. `folder` is the nearest one that exists, from the path that was asked for upwards."""

    folder: Path
    exists: bool  # the folder asked for is there itself
    writable: bool
    kind: str  # "ext4", "tmpfs", ...
    mount: str
    total_bytes: int
    free_bytes: int  # for this user


def cpus() -> int:
    """Return the number of processors this process may run on."""
    return len(os.sched_getaffinity(0))


def memory(proc: Path = PROC, cgroup: Path = CGROUP) -> Memory:
    """Return what RAM there is and what is left, page cache that can be dropped included."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
    total = int(fields["MemTotal"].split()[0]) * 1024
    # MemAvailable: the kernel's estimate of what can be had without swapping (proc(5), since Linux 3.14).
    available = int(fields["MemAvailable"].split()[0]) * 1024
    # A container sees its own group at the top. On a bare host the v1 root has a limit too, of about 2^63.
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _read_int(cgroup / limit_file), _read_int(cgroup / used_file)
        if limit is not None and used is not None and limit < total:
            return Memory(limit, max(0, min(available, limit - used)), str(cgroup / limit_file))
    return Memory(total, available)


def file_system(path: Path, proc: Path = PROC) -> FileSystem:
    """Return what `path` is on, or would be on if it were made."""
    folder = path.absolute()
    while not _is_folder(folder):
        folder = folder.parent
    sizes = os.statvfs(folder)
    mount, kind = _find_mount(folder.resolve(), proc)
    return FileSystem(
        folder=folder,
        exists=folder == path.absolute(),
        writable=os.access(folder, os.W_OK | os.X_OK),
        kind=kind,
        mount=mount,
        total_bytes=sizes.f_blocks * sizes.f_frsize,
        free_bytes=sizes.f_bavail * sizes.f_frsize,
    )


def can_reflink(folder: Path) -> bool:
    """Tell, by trying it on two nameless files, whether files in `folder` can share blocks. Leaves nothing."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    with contextlib.ExitStack() as undo:
        try:
            source = os.open(folder, flags, 0o600)
            undo.callback(os.close, source)
            target = os.open(folder, flags, 0o600)
            undo.callback(os.close, target)
            os.write(source, bytes(4096))
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            return False
        return True


def limits() -> dict[str, int | None]:
    """Return the soft limits of this process that machines run into; None stands for no limit.

    `open-files`, `processes` are counts, `locked-memory-bytes` and `file-size-bytes` bytes.
    """
    kinds = {
        "open-files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "locked-memory-bytes": resource.RLIMIT_MEMLOCK,
        "file-size-bytes": resource.RLIMIT_FSIZE,
    }
    soft = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in soft.items()}


def find_missing_ids(folder: Path = Path("/etc")) -> tuple[str, ...]:
    """Return the files of subuid(5) that give this user no further ids: what a user namespace with several users needs."""
    names = {str(os.getuid())}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    missing = []
    for file in (folder / "subuid", folder / "subgid"):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in names for line in lines):
            missing.append(str(file))
    return tuple(missing)


def is_root() -> bool:
    """Tell whether files and devices of root are open to this process."""
    return os.geteuid() == 0


def may_make_networks(proc: Path = PROC) -> bool:
    """Tell whether this process holds the capabilities for bridges and network namespaces."""
    held = _capabilities(proc)
    return bool(held >> _CAP_NET_ADMIN & 1 and held >> _CAP_SYS_ADMIN & 1)


def may_write_protect_memory(proc: Path = PROC) -> bool:
    """Tell whether userfaultfd also catches accesses that the kernel makes, as QEMU's background snapshot needs.

    Source: kernel document admin-guide/mm/userfaultfd, "Creating a userfaultfd".
    """
    if _capabilities(proc) >> _CAP_SYS_PTRACE & 1:
        return True
    if _read_int(proc / "sys/vm/unprivileged_userfaultfd") == 1:
        return True
    return can_open(Path("/dev/userfaultfd"))


def can_open(device: Path) -> bool:
    """Tell whether a device opens for reading and writing."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def find_tool(name: str) -> str | None:
    """Return the path of a program, or None. The folders of root are searched even if PATH leaves them out."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=os.pathsep.join([path, "/usr/local/sbin", "/usr/sbin", "/sbin"]))


def is_static(program: Path) -> bool:
    """Tell whether an ELF program needs no loader and no library, so that it runs in an initramfs on its own.

    The loader's name stands right behind the program headers, in the first kilobyte: elf(5), PT_INTERP.
    """
    try:
        with program.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return False
    return head.startswith(b"\x7fELF") and b"/ld-" not in head


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:  # inside a folder that is closed to us
        return False


def _capabilities(proc: Path) -> int:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", (proc / "self/status").read_text(), re.MULTILINE)
    return int(match[1], 16) if match else 0


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _find_mount(folder: Path, proc: Path) -> tuple[str, str]:
    # proc(5): "36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sda1 rw"; blanks are \040.
    best = ("/", "unknown")
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        inside = folder == Path(point) or Path(point) in folder.parents
        # A later line with the same point is mounted over the earlier one.
        if inside and len(point) >= len(best[0]):
            best = (point, after.split()[0])
    return best
